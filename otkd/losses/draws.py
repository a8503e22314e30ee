"""Random numbers that belong to an image, whatever batch it comes in."""

from __future__ import annotations

import torch
from torch import Tensor

from otkd.core.seeds import derive

BITS = 24
"""What a number in single precision holds."""
MIX = (-0x61C8864680B583EB, -0x40A7B892E31B1A47)
"""The odd factors of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), as signed numbers."""


def uniform(seed: int, step: int, indices_B: Tensor, count: int) -> Tensor:
    """Numbers (B, count), each uniform in [0, 1), hashed from seed, step, an image's index and a place in its row.

    A batch in another order has the same numbers for the same images. Made on the device of `indices_B`.
    """
    row_B = _mixed(indices_B + derive(seed, "row", step))
    place_K = _mixed(torch.arange(count, device=indices_B.device) + derive(seed, "place", step))
    mixed_BK = _mixed(row_B[:, None] ^ place_K)
    return mixed_BK.bitwise_and_(2**BITS - 1).float().mul_(2.0**-BITS)


def _mixed(x: Tensor) -> Tensor:
    """Every bit of int64 numbers spread over all others."""
    x = x * MIX[0]
    x = x.bitwise_xor_(x >> 29).mul_(MIX[1])
    return x.bitwise_xor_(x >> 32)
