"""What the driver leaves in `runs/records/` for those who ask from outside, and the way to read it quickly.

`<sweep>.jsonl` is the journal of all records (`otkd.track.jsonl`), `<sweep>.plan.json` the sweep with its labels, and
`<sweep>.session.json` what is going on: the stage, slots, time left, the last events, how it ended.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Literal

from pydantic import ValidationError

from otkd.core.config import StrictModel
from otkd.core.errors import StorageError
from otkd.core.layout import Layout, write_text
from otkd.core.records import EpochRecord, SweepInfo
from otkd.sweep.live import Happening, View
from otkd.sweep.lock import Owner, owner
from otkd.sweep.tally import End

TELL_EVERY_S = 5.0
"""Seconds between renewals of what changes all the time."""
EVENTS = 20
"""Events that are kept."""
HEAD = re.compile(rb'\{"event": "(\w+)", "key": "([^"\\]+)"')
"""How a line of the journal begins."""

Ending = Literal["", "finished", "incomplete", "stopped", "failed"]
"""How a session ended; empty while it runs, and for ever where it was killed."""


class Event(StrictModel):
    """Something that happened."""

    time: float
    """In seconds since 1970."""
    text: str


class Session(StrictModel):
    """What one run of the command does."""

    began: float
    """In seconds since 1970."""
    journal: int
    """Bytes of the journal that are older."""
    pid: int = 0
    """The driver's process."""
    since: str = ""
    """When the driver took the lock, as the lock says it: with the process, it tells one driver from all others."""
    told: float = 0.0
    """When this was written."""
    stage: str = ""
    busy: int = 0
    slots: int = 0
    left_s: float | None = None
    """Seconds until the sweep ends, when this was written."""
    searched: int | None = None
    """Trials that its search has at most; None where it is not known."""
    events: tuple[Event, ...] = ()
    ended: Ending = ""
    reason: str = ""

    def is_of(self, who: Owner) -> bool:
        """Whether that driver wrote this."""
        return (self.pid, self.since) == (who.pid, who.since)


def journal_file(layout: Layout, sweep: str) -> Path:
    """The records of a sweep, a line each."""
    return layout.records / f"{sweep}.jsonl"


def plan_file(layout: Layout, sweep: str) -> Path:
    """The sweep as it was last begun."""
    return layout.records / f"{sweep}.plan.json"


def session_file(layout: Layout, sweep: str) -> Path:
    """What the last session of a sweep does."""
    return layout.records / f"{sweep}.session.json"


class PlanFile:
    """Keeps the plan's file true while labels grow. Raises `StorageError` when the disk refuses."""

    def __init__(self, layout: Layout, info: SweepInfo) -> None:
        self._path, self._info = plan_file(layout, info.name), info
        self._write()

    def plan(self, info: SweepInfo) -> None:
        """The labels have grown; written at once, unless that was done just now."""
        self._info = info
        if time.monotonic() - self._written >= TELL_EVERY_S:
            self._write()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._info is not self._last:
            self._write()

    def _write(self) -> None:
        write_text(self._path, self._info.model_dump_json(indent=1))
        self._last, self._written = self._info, time.monotonic()


class SessionFile:
    """A display for other processes: the session's file. The driver that makes it holds the lock."""

    def __init__(self, layout: Layout, sweep: str) -> None:
        self._path = session_file(layout, sweep)
        journal, me = journal_file(layout, sweep), owner(layout)
        self._session = Session(
            began=time.time(),
            journal=journal.stat().st_size if journal.exists() else 0,
            pid=me.pid if me else 0,
            since=me.since if me else "",
        )
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self._written, self._lock = time.monotonic(), RLock()
        self._stale = False
        """Whether other slots are busy than the file says, or the search may name other trials."""
        self._write()

    def say(self, happening: Happening) -> None:
        """Keep events; stages and the end at once."""
        with self._lock:
            self._say(happening)

    def _say(self, happening: Happening) -> None:
        if happening.text:
            self._events.append(Event(time=time.time(), text=happening.text))
        self._stale = self._stale or happening.kind in ("stage", "start")
        if happening.kind == "stage":
            self._change(stage=happening.facts["stage"], slots=happening.facts["slots"], left_s=None)
        elif happening.kind == "end":
            self._change(ended=happening.facts["status"], reason=happening.facts["reason"], busy=0, left_s=None)
        elif happening.text:
            self._change()

    def show(self, view: Callable[[], View]) -> None:
        """Renew what changes all the time."""
        if self._stale or time.monotonic() - self._written >= TELL_EVERY_S:
            self._stale, now = False, view()
            with self._lock:
                if not self._session.ended:
                    self._change(busy=now.busy, slots=now.slots, left_s=now.left_s, searched=now.searched)

    def close(self) -> None:
        """`say` has written the end."""

    def _change(self, **fields: object) -> None:
        self._session = self._session.model_copy(update={**fields, "events": tuple(self._events), "told": time.time()})
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with suppress(StorageError):  # of a full disk the trials tell
            write_text(self._path, self._session.model_dump_json(indent=1))


def read_session(layout: Layout, sweep: str) -> Session | None:
    """The last session of a sweep, None where there was none."""
    try:
        return Session.model_validate_json(session_file(layout, sweep).read_bytes())
    except (OSError, ValidationError):
        return None


class Journal:
    """What the journal says of each trial.

    Args:
        since: place in the file, in bytes, from which on trials belong to the session that runs.
    """

    def __init__(self, path: Path, since: int = 0) -> None:
        self.ends: dict[str, End] = {}
        """Trial → how it ended; none that has begun again since."""
        self.begun: set[str] = set()
        """Trials that began in this session and have not ended."""
        self._epochs: dict[str, bytes] = {}
        with suppress(FileNotFoundError), path.open("rb") as file:
            place = 0
            for line in file:
                self._take(line, place >= since)
                place += len(line)

    def last(self, key: str) -> EpochRecord | None:
        """A trial's last epoch."""
        if key not in self._epochs:
            return None
        fields = json.loads(self._epochs[key])
        del fields["event"]
        return EpochRecord.model_validate(fields)

    def _take(self, line: bytes, new: bool) -> None:
        head = HEAD.match(line)
        if head is None or not line.endswith(b"\n"):
            return  # not a line of ours, or one that is being written
        kind, key = head[1], head[2].decode()
        if kind == b"epoch":
            self._epochs[key] = line
        elif kind == b"start":
            self.ends.pop(key, None)
            (self.begun.add if new else self.begun.discard)(key)
        elif kind == b"finish":
            end = json.loads(line)
            self.ends[key] = End(end["status"], end["metrics"], end["reason"])
            self.begun.discard(key)
