"""The pulse of training: shows to the outside that it goes on, and hears from there that it is to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from otkd.core.errors import TrialError
from otkd.core.output import Batch
from otkd.data.batches import Batches
from otkd.train.distributed import Group, answered

EVERY_S = 1.0
"""Seconds between signs of life, and between looks whether to stop."""
MOST_BEATS = 64
"""The most steps between looks where several processes have to look at the same step."""


class Stopped(Exception):
    """Whoever trains here is asked to save and stop."""


class DeadlineError(TrialError):
    """A trial has trained for as long as it may."""


class Pulse:
    """Beats with every step. Where several processes train, they stop at the same one.

    Args:
        group: the processes that share every batch; the first one shows, looks and decides.
        stop: a file that asks to stop by being there; None where nobody may ask.
        signs: gives the files that are touched to show progress.
    """

    def __init__(self, group: Group, stop: Path | None, signs: Callable[[], Iterable[Path]]) -> None:
        self._group, self._stop, self._signs = group, stop, signs
        self._shown = -EVERY_S
        self._asked = self._deferred = False
        self._steps, self._left = 0, 1
        """Steps since all have looked, and until they look again."""
        self._agreed = time.monotonic()

    def beat(self, *, step: bool = False) -> None:
        """Something was done.

        Args:
            step: all processes come by here, each as often as the others.

        Raises:
            Stopped: somebody asks for it.
        """
        alone = self._group.world == 1
        if self._group.rank == 0 and time.monotonic() - self._shown >= EVERY_S:
            self._show()
            if alone:
                self._asked = self._asked or self._is_asked()
        if step and not alone:
            self._agree_by_the_step()
        if self._asked and not self._deferred and (alone or step):
            raise Stopped

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Finish what is inside first, in any case."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _show(self) -> None:
        self._shown = time.monotonic()
        for file in self._signs():
            with suppress(OSError):  # where nothing can be written, a checkpoint will say so
                file.touch()

    def _is_asked(self) -> bool:
        return self._stop is not None and self._stop.exists()

    def _agree_by_the_step(self) -> None:
        """Every so many steps, about once in `EVERY_S`, hear from the first process whether to stop."""
        self._steps, self._left = self._steps + 1, self._left - 1
        if self._left or self._stop is None:
            return
        pace = int(self._steps * EVERY_S / max(time.monotonic() - self._agreed, 1e-6))
        asked, self._left = _of_the_first([int(self._is_asked()), min(max(pace, 1), MOST_BEATS)], self._group)
        self._asked = self._asked or bool(asked)
        self._steps, self._agreed = 0, time.monotonic()


def _of_the_first(numbers: list[int], group: Group) -> list[int]:
    """The numbers that rank 0 has."""
    told = torch.tensor(numbers, device=group.device)
    with answered():
        dist.broadcast(told, 0)
    return [int(number) for number in told.tolist()]


class PulsedBatches(Batches):
    """Batches that beat a pulse while they are looked at in order; training beats it by the step.

    Args:
        pulse: what to beat; the others are those of `Batches`.
    """

    def __init__(self, pulse: Pulse, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pulse = pulse

    def ordered(self, batch_size: int, *, whole: bool = False) -> Iterator[Batch]:
        """As for `Batches`.

        Raises:
            Stopped: somebody asks for it.
        """
        for batch in super().ordered(batch_size, whole=whole):
            yield batch
            self._pulse.beat()
