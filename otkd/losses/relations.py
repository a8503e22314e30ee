"""Comparing what lies between the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor, floor: float = 1e-12) -> Tensor:
    """Vectors (..., D) brought to length 1; those no longer than `floor` become 0 and have no gradient. NaN stays."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm <= floor, 0.0, x / norm.clamp_min(floor))
