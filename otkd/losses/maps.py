"""Comparing feature maps of different sizes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def same_size(map_s_BCHW: Tensor, map_t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the spatially larger of two maps to the size of the smaller, each side by itself."""
    (h_s, w_s), (h_t, w_t) = map_s_BCHW.shape[-2:], map_t_BCHW.shape[-2:]
    size = (min(h_s, h_t), min(w_s, w_t))
    return _pooled(map_s_BCHW, size), _pooled(map_t_BCHW, size)


def _pooled(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    return map_BCHW if tuple(map_BCHW.shape[-2:]) == size else F.adaptive_avg_pool2d(map_BCHW, size)
