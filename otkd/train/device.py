"""What the device at hand is and which arithmetic it is fast in."""

from __future__ import annotations

import ctypes
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from otkd.core.errors import OtkdError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's `mallopt`."""


def pick(name: str = "auto") -> torch.device:
    """The device by name; `auto` is CUDA when there is one, else the CPU.

    Raises:
        OtkdError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = f" ({str(error).splitlines()[0]})" if name.startswith("cuda") else ""
        allowed = "auto, cpu, cuda" if torch.cuda.is_available() else "auto, cpu"
        raise OtkdError(f"--device: there is no device {name!r} here{reason}; there is {allowed}.") from None
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 when `precision` asks for it, or leaves the choice and the device computes it faster; None means fp32."""
    fast = _bf16_is_fast(device) if precision == "auto" else precision == "bf16"
    return torch.bfloat16 if fast else None


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def peak_mib(device: torch.device) -> float:
    """Peak memory so far, in MiB: of the allocator on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _peak_kib() / 1024


def _peak_kib() -> float:
    """Of this process since it began; what the system counts for `getrusage` begins with what its parent had."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def keep_freed_memory(most: int = 2**30) -> None:
    """Have the C library keep what is freed, up to so many bytes, for the next step, which needs as much.

    It would give each large tensor back to the system and get it again page by page, in every step anew. Where there is
    no glibc this does nothing.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        library.mallopt(setting, most)


def compile_network(network: nn.Module) -> None:
    """Have a network compiled at its first forward; names and weights stay as they are, numbers but for rounding.

    Dropout draws what it would draw uncompiled.
    """
    from torch._inductor import config  # which takes seconds

    config.fallback_random = True
    network.compile()


def describe(device: torch.device) -> str:
    """The device's name for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


class Stopwatch:
    """Adds up the seconds that parts of a step take on the device, without waiting for it at each step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        if self._cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin_s

    def total(self) -> float:
        """Seconds since the last reading. On CUDA this waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events = []
        return self._seconds

    def read(self) -> float:
        """The same, and begin anew."""
        seconds, self._seconds = self.total(), 0.0
        return seconds


class RandomStream:
    """A stream of random numbers of one student's own, for modules that draw from the global generators (dropout).

    Inside `with stream:` the global generators are this stream's; outside they are what they were before.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        with torch.random.fork_rng([device] if self._cuda else []):
            torch.manual_seed(seed)
            self.state = self._get()

    def __enter__(self) -> None:
        self._outer = self._get()
        self._set(self.state)

    def __exit__(self, *_: object) -> None:
        self.state = self._get()
        self._set(self._outer)

    def _get(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self._cuda)] if self._cuda else [])]

    def _set(self, state: list[torch.Tensor]) -> None:
        torch.set_rng_state(state[0])
        if self._cuda:
            torch.cuda.set_rng_state(state[1], self._cuda)
