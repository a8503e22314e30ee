"""The energy that the device uses, by its own counters: of a GPU by NVIDIA's library, of a CPU by Linux' powercap.

Where a counter cannot be read (powercap is often for root alone) there is no figure, and training goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pynvml
import torch

from otkd.train.system import gpu_handle

log = logging.getLogger("otkd")

POWERCAP = Path("/sys/class/powercap")
MOST_W = 600.0
"""More than a CPU's package draws for long: what it may have used between two readings, against the counter's span."""


class Counter(NamedTuple):
    """A counter of energy."""

    read: Callable[[], float]
    """Gives joules since some moment in the past."""
    span: float = math.inf
    """After how many joules it begins at zero again."""


def counters(device: torch.device) -> list[Counter]:
    """Those of a GPU, or of all packages of the machine's CPU; none where they cannot be found."""
    if device.type == "cuda":
        gpu = gpu_handle(device)
        return [] if gpu is None else [Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)]
    try:
        zones = [zone for zone in POWERCAP.glob("intel-rapl:*") if (zone / "name").read_text().startswith("package")]
        return [Counter(partial(_joules, zone / "energy_uj"), _joules(zone / "max_energy_range_uj")) for zone in zones]
    except (OSError, ValueError) as error:
        log.info("the CPU's energy cannot be read, so none is recorded: %s", error)
        return []


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


class Meter:
    """Adds up what counters count. When one fails, there are no figures from then on."""

    def __init__(self, counters: Iterable[Counter]) -> None:
        self._counters = list(counters)
        self.begin()

    def begin(self) -> None:
        """Count from here."""
        self._joules = self._seconds = 0.0
        self._at, self._last = time.monotonic(), self._read()

    def used(self) -> tuple[float, float]:
        """Joules and seconds since `begin`; NaN joules where these cannot be told."""
        at, last = self._at, self._last
        self._at, self._last = time.monotonic(), self._read()
        self._seconds += self._at - at
        self._joules += self._between(last, self._last, self._at - at)
        return self._joules, self._seconds

    def _between(self, before: list[float], after: list[float], seconds: float) -> float:
        """NaN also where a counter may have gone round more than once, or began at zero when it should not."""
        if not after or any(seconds * MOST_W > counter.span for counter in self._counters):
            return math.nan
        readings = zip(self._counters, before, after, strict=True)
        joules = sum((end - begin) % counter.span for counter, begin, end in readings)
        return joules if math.isfinite(joules) else math.nan

    def _read(self) -> list[float]:
        try:
            return [counter.read() for counter in self._counters]
        except (OSError, ValueError, pynvml.NVMLError) as error:
            log.info("the device's energy cannot be read, so none is recorded: %s", error)
            self._counters = []
            return []
