"""Watchers over what solvers do inside."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that reads a tensor's content on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "unique", "masked_select")
        return func(*args, **(kwargs or {}))


class Numbers(TorchDispatchMode):
    """The most numbers that were alive at once in storages made inside: floats of any precision, and bytes in fours.

    So a float64 copy of a float32 cost is one matrix: what is counted is in the precision that a solver computes in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = WeakTensorKeyDictionary(), 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, Tensor):
                size = part.element_size() if part.is_floating_point() else 4
                self.alive[part] = (part.untyped_storage().data_ptr(), part.untyped_storage().nbytes() / size)
        self.most = max(self.most, sum(dict(self.alive.values()).values()))
        return out


@pytest.fixture
def no_waiting() -> NoWaiting:
    """A block in which the host must not wait for a tensor."""
    return NoWaiting()


@pytest.fixture
def numbers() -> Numbers:
    """A block whose memory is counted."""
    return Numbers()
