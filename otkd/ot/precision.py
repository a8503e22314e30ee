"""At least single precision, whatever the networks around it compute in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from otkd.core.errors import OtkdError


def widened(tensor: Tensor) -> torch.dtype:
    """What `tensor` is computed in: float32 in place of half precision, else its own."""
    return torch.promote_types(tensor.dtype, torch.float32)


def widen(tensor: Tensor) -> Tensor:
    """`tensor` in float32 at least: half precision is widened, float64 stays."""
    return tensor.to(widened(tensor))


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for the device of `tensor`, where it is on.

    Raises:
        OtkdError: what came is no tensor.
    """
    check_tensor("a cost", tensor)
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def check_tensor(name: str, given: object) -> None:
    """Refuse what is no tensor.

    Raises:
        OtkdError: with what came, under `name`.
    """
    if not isinstance(given, Tensor):
        kind = f"{type(given).__module__}.{type(given).__qualname__}"
        raise OtkdError(f"{name} has to be a torch tensor, not {kind}; torch.as_tensor makes one of an array or a list")
