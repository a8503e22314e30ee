"""The one thread that writes to the store, so that training never waits for it."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from otkd.core.records import TrialResult
from otkd.track.events import ROOM, Described, Event, Waiting

logger = logging.getLogger("otkd.track")

TRIES = 3
"""Attempts at a record that a store in good health refuses, before the record is given up."""


class Writer(threading.Thread):
    """Writes events in order of each trial, again and again while the store is away.

    Args:
        write: writes events of one trial, and returns what may wait until nothing else does; called from this thread
            alone. What it raises is an outage when the store does not answer, and a fault of that trial when it does.
        answers: whether the store answers.
        kept: whether files have the epochs of which an event tells, so that memory need not.
        pause: seconds before the second attempt; doubles up to 30.
        room: metric values that may wait in memory.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Event]], Event | None],
        answers: Callable[[], bool],
        kept: Callable[[Event], bool],
        pause: float = 1.0,
        room: int = ROOM,
    ) -> None:
        super().__init__(name="otkd-tracking", daemon=True)
        self.problems: dict[str, str] = {}
        """Trial → why the store refused its records."""
        self._write, self._answers, self._pause = write, answers, pause
        self._now, self._later = Waiting(kept, room), Waiting(kept, room)
        self._busy: str | None = None
        """Of what something is being written."""
        self._done = 0
        """How often something was written, or given up."""
        self._changed = threading.Condition()
        self._closing = False
        self._abandon = threading.Event()
        self._away = False

    def put(self, event: Event) -> None:
        """Take an event; returns at once."""
        with self._changed:
            self._now.put(event)
            self._changed.notify_all()

    def pending(self) -> set[str]:
        """Trials with events that are not written yet."""
        with self._changed:
            return {key for key in (*self._now.keys(), *self._later.keys(), self._busy) if key}

    def flush(self, timeout: float) -> bool:
        """Wait until all is written; False when nothing was for `timeout` seconds."""
        with self._changed:
            while not self._idle():
                if not self._changed.wait_for(partial(self._moved, self._done), timeout):
                    return False
            return True

    def stop(self, timeout: float) -> None:
        """Write what is left, for at most `timeout` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join(timeout)
        self._abandon.set()
        self.join(1.0)

    def run(self) -> None:
        # Python's search for garbage would go through all imported modules again and again, as every batch makes
        # thousands of objects: a fifth of the time that a batch takes
        gc.freeze()
        try:
            while unit := self._take():
                self._persist(unit)
                if self._abandon.is_set():
                    return
        finally:
            gc.unfreeze()

    def _moved(self, done: int) -> bool:
        return self._done > done

    def _idle(self) -> bool:
        return not self._now and not self._later and self._busy is None

    def _take(self) -> list[Event]:
        """What to write next; nothing when there is nothing left and the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._now or self._later or self._closing)
            events = self._now.take() or self._later.take()
            self._busy = events[0].key if events else None
            return events

    def _persist(self, unit: list[Event]) -> None:
        faults = 0
        for attempt in count():
            try:
                later = self._write(unit)
            except Exception as error:
                faults += self._note(error)
                if faults < TRIES:
                    if self._abandon.wait(min(self._pause * 2 ** min(attempt, 10), 30.0)):
                        return
                    continue
                later = None
                self.problems.setdefault(unit[0].key, str(error) or type(error).__name__)
            else:
                self._succeeded(unit)
            self._settle(later)
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
        if any(isinstance(event, TrialResult | Described) for event in unit):
            self.problems.pop(unit[0].key, None)  # it carries all that came before it

    def _settle(self, later: Event | None) -> None:
        with self._changed:
            if later is not None:
                self._later.put(later)
            self._busy = None
            self._done += 1
            self._changed.notify_all()
