"""The one thread that writes to the store, so that training never waits for it."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import count
from time import time
from typing import NamedTuple

from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial

logger = logging.getLogger("otkd.track")

TRIES = 3
"""Attempts at a record that a store in good health refuses, before the record is given up."""


class Started(NamedTuple):
    """A trial has begun, or goes on."""

    key: str
    trial: Trial
    time: float


class Interrupted(NamedTuple):
    """The driver stops while a trial is under way."""

    key: str


Event = Started | EpochRecord | TrialResult | Interrupted


class Writer(threading.Thread):
    """Writes events in order, again and again while the store is away.

    Args:
        write: writes events of one trial; called from this thread alone. What it raises is an outage when the store
            does not answer, and a fault of that trial when it does.
        answers: whether the store answers.
        pause: seconds before the second attempt; doubles up to 30.
    """

    def __init__(
        self, write: Callable[[Sequence[Event]], None], answers: Callable[[], bool], pause: float = 1.0
    ) -> None:
        super().__init__(name="otkd-tracking", daemon=True)
        self.problems: dict[str, str] = {}
        """Trial → why the store refused its records."""
        self._write, self._answers, self._pause = write, answers, pause
        self._queue: deque[Event] = deque()
        self._unwritten: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._closing = False
        self._abandon = threading.Event()
        self._away = False

    def put(self, event: Event) -> None:
        """Take an event; returns at once."""
        with self._changed:
            self._queue.append(event)
            self._unwritten[event.key] += 1
            self._changed.notify_all()

    def pending(self) -> set[str]:
        """Trials with events that are not written yet."""
        with self._changed:
            return {key for key, events in self._unwritten.items() if events}

    def flush(self, timeout: float) -> bool:
        """Wait until all is written; False when it was not within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._unwritten.values()), timeout)

    def stop(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join(timeout)
        self._abandon.set()
        self.join(1.0)

    def run(self) -> None:
        while events := self._take():
            for unit in units(events):
                self._persist(unit)
                if self._abandon.is_set():
                    return

    def _take(self) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            events = list(self._queue)
            self._queue.clear()
            return events

    def _persist(self, unit: list[Event]) -> None:
        faults = 0
        for attempt in count():
            try:
                self._write(unit)
            except Exception as error:
                faults += self._note(error)
                if faults < TRIES:
                    if self._abandon.wait(min(self._pause * 2 ** min(attempt, 10), 30.0)):
                        return
                    continue
                self.problems.setdefault(unit[0].key, f"{type(error).__name__}: {error}")
            else:
                self._succeeded(unit)
            self._settle(unit)
            return

    def _note(self, error: Exception) -> int:
        """1 when the record is at fault, 0 when the store is away; the first is remembered, the second told once."""
        if self._answers():
            return 1
        if not self._away:
            self._away = True
            reason = (str(error).splitlines() or [""])[0][:200]
            logger.warning(
                "the tracking store does not answer; training goes on, and so will logging when it is back (%s)", reason
            )
        return 0

    def _succeeded(self, unit: list[Event]) -> None:
        if self._away:
            self._away = False
            logger.warning("the tracking store answers again; logging goes on")
        if isinstance(unit[-1], TrialResult):
            self.problems.pop(unit[-1].key, None)  # a result carries all that came before it

    def _settle(self, unit: list[Event]) -> None:
        with self._changed:
            self._unwritten[unit[0].key] -= len(unit)
            self._changed.notify_all()


def units(events: Sequence[Event]) -> list[list[Event]]:
    """Events as they can be written: in order, with the epochs of one trial together as far as order allows."""
    result: list[list[Event]] = []
    open_units: dict[str, list[Event]] = {}
    for event in events:
        if isinstance(event, EpochRecord) and event.key in open_units:
            open_units[event.key].append(event)
            continue
        unit: list[Event] = [event]
        result.append(unit)
        if isinstance(event, EpochRecord):
            open_units[event.key] = unit
        else:
            open_units.pop(event.key, None)
    return result


def started(trial: Trial) -> Started:
    """The event of a trial that begins now."""
    return Started(trial.key, trial, time())
