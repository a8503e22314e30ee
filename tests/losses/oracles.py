"""Plain numpy, in loops, that several oracles stand on."""

from __future__ import annotations

from typing import Any

import numpy as np


def pooled(x: Any, h: int, w: int) -> Any:
    """Adaptive average pooling of maps (…, H, W): cell i averages rows floor(iH/h) to ceil((i+1)H/h)."""
    rows, columns = x.shape[-2:]
    out = np.empty((*x.shape[:-2], h, w))
    for i in range(h):
        for j in range(w):
            cell = x[..., i * rows // h : -(-(i + 1) * rows // h), j * columns // w : -(-(j + 1) * columns // w)]
            out[..., i, j] = cell.mean((-2, -1))
    return out


def paired(map_s: Any, map_t: Any, b: int) -> tuple[Any, Any]:
    """Image b of both maps, the larger pooled to the smaller."""
    h, w = (min(map_s.shape[axis], map_t.shape[axis]) for axis in (2, 3))
    return pooled(map_s[b].double().numpy(), h, w), pooled(map_t[b].double().numpy(), h, w)
