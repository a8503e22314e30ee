"""Clocks, scales and limits."""

from __future__ import annotations

import signal
import statistics
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.transport.problems import Answer, Problem, Setting, Solve

FEWEST = 3
"""Repeats that every code gets which is not too slow."""


class Effort(NamedTuple):
    """How much measuring a cell is worth."""

    repeats: int
    budget_ms: float
    """Time after which a code is not repeated any more, from `FEWEST` repeats on."""
    slow_ms: float
    """Who takes longer for one call is not called again, and not tried on problems as large or larger."""

    @property
    def patience_s(self) -> float:
        """When a call is given up."""
        return 3 * self.slow_ms / 1000


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(begin.elapsed_time(end))
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def alternate(
    calls: Mapping[str, Callable[[], object]], effort: Effort, device: torch.device
) -> dict[str, list[float]]:
    """Times of each call in milliseconds, by rounds over all of them, so that a busy spell of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(effort.repeats):
        for name, call in calls.items():
            if len(times[name]) < FEWEST or sum(times[name]) < effort.budget_ms:
                times[name].append(milliseconds(call, device))
    return times


def spread(times: Sequence[float]) -> float:
    """Half the interquartile range."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / 2


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below is not None else None


def step(solve: Solve, problem: Problem, setting: Setting) -> Answer:
    """What is timed: the value and, where there is one, its gradient."""
    answer = solve(problem, setting)
    if answer.value_B.requires_grad:
        torch.autograd.grad(answer.value_B.sum(), problem.x_BND)
    return answer


def floor(problem: Problem) -> Callable[[], object]:
    """The product of the points and its backward pass."""
    x, y = problem.x_BND, problem.y_BND
    plan = torch.full((*x.shape[:-1], y.shape[-2]), 1 / y.shape[-2], device=x.device)

    def call() -> object:
        return torch.autograd.grad(x @ y.mT, x, plan)

    call()  # warms up
    return call


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Give up what takes longer, between two of its operations."""

    def give_up(*_: object) -> NoReturn:
        raise TimeoutError(f"> {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limited_tape(most: int) -> saved_tensors_hooks:
    """Give up who keeps more than so many bytes for its backward pass."""
    known: set[int] = set()
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            total += storage.nbytes()
            if total > most:
                raise MemoryError(f"tape > {most / 2**30:g} GiB")
        return tensor.detach()  # an operation that kept its own output would never be let go of

    return saved_tensors_hooks(pack, lambda tensor: tensor)


class LiveTensors(TorchDispatchMode):
    """Follows the bytes of all tensors made while it is on, their peak too; not what an operator needs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.live = self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to be skipped, torch's compiler would have to be imported first."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Peak memory of a call beyond what stood before: of the allocator on CUDA, else of tensors and arrays added."""
    if device.type == "cuda":
        before: int = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        after: int = torch.cuda.max_memory_allocated(device)
        return (after - before) / 2**20
    tracemalloc.start()
    try:
        with LiveTensors() as tensors:
            call()
        return (tensors.peak + tracemalloc.get_traced_memory()[1]) / 2**20
    finally:
        tracemalloc.stop()
