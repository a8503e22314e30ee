"""Random numbers that belong to an image, whatever batch it comes in."""

from __future__ import annotations

import torch
from torch import Tensor

from otkd.core.seeds import derive

GOLDEN = 0.6180339887498949


def uniform(seed: int, step: int, indices_B: Tensor, count: int) -> Tensor:
    """Numbers (B, count), each uniform in [0, 1): `count` draws of a step, moved round the circle by an image's index.

    A batch in another order has the same numbers for the same images. Drawn on the device of `indices_B`.
    """
    generator = torch.Generator(indices_B.device).manual_seed(derive(seed, "draws", step))
    drawn_K = torch.rand(count, generator=generator, device=indices_B.device, dtype=torch.float64)
    shifted_BK = drawn_K + (indices_B.double() * GOLDEN)[:, None]
    return (shifted_BK - shifted_BK.floor()).float().clamp_(max=1 - 2**-24)
