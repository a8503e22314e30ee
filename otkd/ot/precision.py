"""At least single precision, whatever the networks around it compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(tensor: Tensor) -> torch.dtype:
    """What `tensor` is computed in: float32 in place of half precision, else its own."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 at least: half precision is widened, float64 stays."""
    return tensor.to(widened(tensor))


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the device of `tensor`, where it is on."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
