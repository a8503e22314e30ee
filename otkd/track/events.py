"""What the tracker has to write, and the queue in which it waits, by trial, and no more of it than fits in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import time
from typing import NamedTuple

from otkd.core.records import EpochRecord, SweepInfo, TrialResult
from otkd.core.trial import Trial

SWEEP = ""
"""The key of what concerns the sweep's own run."""

ROOM = 20_000
"""Metric values that may wait in memory, some 4 MB of them."""


class Opened(NamedTuple):
    """The sweep begins, or goes on."""

    key: str = SWEEP


class Described(NamedTuple):
    """The sweep has new trials."""

    info: SweepInfo
    key: str = SWEEP


class Started(NamedTuple):
    """A trial has begun, or goes on."""

    key: str
    trial: Trial
    time: float


class Behind(NamedTuple):
    """Epochs of a trial for which there was no room: files have them."""

    key: str
    epochs: set[tuple[str, int]]
    """Stage and epoch of each."""


class Written(NamedTuple):
    """A trial has ended and its figures are in the store; its files, and the end of its run, may wait."""

    key: str
    result: TrialResult
    run_id: str
    place: str
    """Address of the run's files."""


class Interrupted(NamedTuple):
    """The driver stops while a trial is under way."""

    key: str


Event = Opened | Described | Started | EpochRecord | Behind | TrialResult | Written | Interrupted


class Waiting:
    """Events by trial; the trial that has waited longest comes first, with all that waits of it.

    Args:
        kept: whether files have what an event says of epochs; asked only where there is no room.
        room: metric values beyond which epochs are forgotten, and a `Behind` says which.
    """

    def __init__(self, kept: Callable[[Event], bool], room: int = ROOM) -> None:
        self.values = 0
        """Metric values that wait."""
        self._kept, self._room = kept, room
        self._events: OrderedDict[str, list[Event]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._events)

    def keys(self) -> set[str]:
        """Of which trials something waits."""
        return set(self._events)

    def put(self, event: Event) -> None:
        """Take an event."""
        events = self._events.setdefault(event.key, [])
        if self.values + values(event) > self._room and values(event) and self._kept(event):
            _fall_behind(events, event)
        else:
            events.append(event)
            self.values += values(event)

    def take(self) -> list[Event]:
        """Everything of the trial that has waited longest; nothing when nothing waits."""
        if not self._events:
            return []
        _, events = self._events.popitem(last=False)
        self.values -= sum(map(values, events))
        return events


def _fall_behind(events: list[Event], event: Event) -> None:
    """Note which epochs are missing, and keep what an event says besides."""
    last = events[-1] if events else None
    behind = last if isinstance(last, Behind) else Behind(event.key, set())
    if behind is not last:
        events.append(behind)
    behind.epochs.update((record.stage, record.epoch) for record in epochs(event))
    if isinstance(event, TrialResult):
        events.append(without_epochs(event))
    elif isinstance(event, Written):
        events.append(event._replace(result=without_epochs(event.result)))


def epochs(event: Event) -> tuple[EpochRecord, ...]:
    """The epochs of which an event tells."""
    if isinstance(event, EpochRecord):
        return (event,)
    result = event.result if isinstance(event, Written) else event
    return result.epochs if isinstance(result, TrialResult) else ()


def values(event: Event) -> int:
    """How many metric values an event holds for the epochs of which it tells."""
    return sum(len(record.metrics) for record in epochs(event))


def without_epochs(result: TrialResult) -> TrialResult:
    return result.model_copy(update={"epochs": ()})


def started(trial: Trial) -> Started:
    """The event of a trial that begins now."""
    return Started(trial.key, trial, time())
