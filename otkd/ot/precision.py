"""At least single precision, whatever the networks around it compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 at least: half precision is widened, float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the device of `tensor`."""
    return torch.autocast(tensor.device.type, enabled=False)
