"""How a sweep stands, told from outside and from `runs/` alone: while it runs, and after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.core.plugins import unknown
from otkd.core.records import SweepInfo
from otkd.sweep.displays import finite, render
from otkd.sweep.earlier import earlier
from otkd.sweep.journal import Journal, Session, journal_file, plan_file, read_session
from otkd.sweep.live import Row, View, speed
from otkd.sweep.lock import Owner, owner
from otkd.sweep.show import titled
from otkd.sweep.tally import End, Tally, reached, top1

SHOWN_EVENTS = 5
UNSETTLED = ("failed", "pruned")
"""Ends after which another sweep may have gone on with a trial."""


class Status(NamedTuple):
    """How a sweep stands."""

    info: SweepInfo
    owner: Owner | None
    """Who runs it now."""
    session: Session | None
    """Its last run, or the one of `owner`; None where that is not on record, or not yet."""
    view: View
    ends: dict[str, End]
    """Trial → how it ended."""
    begun: tuple[Row, ...]
    """Trials that have a checkpoint to go on from, and are not in training."""


def status(layout: Layout, name: str | None = None) -> Status:
    """How a sweep stands.

    Args:
        name: by default the one that runs, else the one that was begun last; the profile may be left out.

    Raises:
        OtkdError: there is no such sweep, and says which there are; or it has only just begun.
    """
    who = owner(layout)
    info = _info(layout, name, who)
    runs = who if who is not None and who.sweep == info.name else None
    session = read_session(layout, info.name)
    if session and runs and not session.is_of(runs):
        session = None  # an older driver's, which was killed
    journal = Journal(journal_file(layout, info.name), session.journal if session else 0)
    tally = _tally(info, layout, journal, running=bool(session and runs))
    left = _less(session.left_s, time.time() - session.told) if session and runs else None
    view = View(
        name=info.name,
        stages=tuple(tally.stages()),
        busy=session.busy if session and runs else 0,
        slots=session.slots if session and runs else 0,
        counts=tally.counts(),
        rows=tuple(_rows(tally, layout)),
        best=tuple(tally.best()),
        left_s=left,
        searched=session.searched if session else None,
        over=bool(session and not runs and session.ended == "finished"),
    )
    return Status(info, runs, session, view, tally.ended, tuple(_begun(tally, layout, journal)))


def show_status(found: Status, console: Console) -> None:
    """Print it for a person."""
    console.print(titled(found.info), highlight=False)
    console.print(escape(headline(found)), highlight=False, soft_wrap=True)
    console.print(render(found.view))
    events = found.session.events[-SHOWN_EVENTS:] if found.session else ()
    told = {event.text for event in events}
    lines = [line for line in _failures(found) if line not in told]
    lines += [f"{_clock(event.time)} {event.text}" for event in events]
    for line in (*_interrupted(found), *lines):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _interrupted(found: Status) -> Iterator[str]:
    for row in found.begun:
        yield f"{row.title}: begun{f', epoch {reached(row.record)}' if row.record else ''}, goes on from there"


def _failures(found: Status) -> Iterator[str]:
    """The trials that failed or diverged, as events name them."""
    titles = {label.key: label.title for label in reversed(found.info.labels)}
    for key, end in found.ends.items():
        if end.status in ("failed", "diverged"):
            yield f"{titles.get(key, key)}: {end.status}: {end.reason}"


def headline(found: Status) -> str:
    """Who runs it, or how it ended."""
    if found.owner is not None:
        stage = f", {(found.session and found.session.stage) or 'starting'}"
        who = found.owner
        return f"running{stage}: process {who.pid} of {who.user} on {who.host}, since {who.since}"
    if found.session is None:
        return "not running"
    last = f"begun {_clock(found.session.began)}"
    if not found.session.ended:
        return f"not running; {last}, broken off without a word (killed?); the same command goes on from here"
    reason = f": {found.session.reason}" if found.session.reason else ""
    on = "the same command goes on from here"
    more = {
        "finished": "",
        "incomplete": "; --retry-failed tries again what failed",
        "failed": f"; mend that, and {on}",
    }
    told = _clock(found.session.told)
    return f"not running; {last}, {found.session.ended} {told}{reason}{more.get(found.session.ended, f'; {on}')}"


def as_json(found: Status) -> dict[str, Any]:
    """The same for programs; numbers that JSON does not know are null."""
    session, view = found.session, found.view
    return {
        "sweep": found.info.name,
        "running": found.owner is not None,
        "owner": found.owner._asdict() if found.owner else None,
        "began": session.began if session else None,
        "ended": session.ended if session and not found.owner else "",
        "reason": session.reason if session else "",
        "stage": session.stage if session else "",
        "stages": [stage._asdict() for stage in view.stages],
        "counts": view.counts._asdict(),
        "slots": {"busy": view.busy, "all": view.slots},
        "left_s": view.left_s,
        "trials": [_row(row) for row in view.rows],
        "begun": [_row(row) for row in found.begun],
        "best": [best._asdict() for best in view.best],
        "events": [event.model_dump() for event in session.events] if session else [],
    }


def _info(layout: Layout, name: str | None, who: Owner | None) -> SweepInfo:
    """The plan of the sweep that is meant."""
    files = sorted(layout.records.glob("*.plan.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    there = [file.name.removesuffix(".plan.json") for file in files]
    if who is not None and who.sweep not in there and (name == who.sweep or not there):
        raise OtkdError(f"a sweep is starting: process {who.pid} of {who.user} on {who.host}, since {who.since}.")
    if not there:
        raise OtkdError(f"no sweep was run in {layout.root} yet. Run one first: `otkd sweep FILE`.")
    wanted = name or (who.sweep if who is not None and who.sweep in there else there[0])
    with_profile = [sweep for sweep in there if sweep.startswith(f"{wanted}-")]
    chosen = next((sweep for sweep in (wanted, *with_profile) if sweep in there), None)
    if chosen is None:
        raise OtkdError(unknown("sweep", wanted, there))
    file = plan_file(layout, chosen)
    try:
        return SweepInfo.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise OtkdError(f"{file} is damaged; the sweep's own command writes it again.") from None


def _tally(info: SweepInfo, layout: Layout, journal: Journal, running: bool) -> Tally:
    """What the journal says, and of trials that another sweep has trained their results."""
    tally = Tally(info.labels)
    for key in journal.begun if running else ():
        if not layout.trial(key).done:  # its end is about to be told
            tally.running[key] = journal.last(key)
    tally.ended |= {key: end for key, end in journal.ends.items() if key in tally.labels}
    open_ = [key for key in tally.labels if key not in tally.running and _unsettled(tally.ended.get(key))]
    for key, entry in earlier(layout, open_).items():
        tally.ended[key] = End(entry.status, entry.metrics, entry.reason)
    return tally


def _unsettled(end: End | None) -> bool:
    return end is None or end.status in UNSETTLED


def _rows(tally: Tally, layout: Layout) -> Iterator[Row]:
    now = time.time()
    for key, record in tally.running.items():
        times = [record.time] if record else []
        with suppress(OSError):
            times.append(layout.trial(key).pulse.stat().st_mtime)
        heard = max(now - max(times), 0.0) if times else None
        yield Row(key, tally.title(key), record, heard_s=heard)


def _begun(tally: Tally, layout: Layout, journal: Journal) -> Iterator[Row]:
    for key in tally.labels:
        if not (key in tally.running or key in tally.ended) and layout.trial(key).checkpoint.exists():
            yield Row(key, tally.title(key), journal.last(key))


def _row(row: Row) -> dict[str, Any]:
    record = row.record
    measured = top1(record) if record else None
    return {
        "key": row.key,
        "title": row.title,
        "stage": record.stage if record else None,
        "epoch": record.epoch if record else None,
        "epochs": record.epochs if record else None,
        "top1": finite(measured[0]) if measured else None,
        "measured_on": measured[1] if measured else None,
        "images_per_s": speed(record) if record else None,
        "heard_s": row.heard_s,
    }


def _less(seconds: float | None, elapsed: float) -> float | None:
    return None if seconds is None else max(seconds - max(elapsed, 0.0), 0.0)


def _clock(seconds: float) -> str:
    """Local time for a person, `2024-05-01 14:03`."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
