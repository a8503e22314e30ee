"""Where progress is shown: a live table in a terminal, plain lines elsewhere, problems alone, or JSON for programs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from otkd.sweep.live import Display, Happening, Row, View, duration, speed
from otkd.sweep.tally import SEARCH, Best, Stage, reached, top1

LINE_EVERY_S = 10.0
"""Seconds between plain progress lines."""
REFRESHES_PER_S = 2
ROWS, METHODS = 12, 10
"""The most trials in training, and methods, that a table lists."""


def for_person(console: Console, quiet: bool = False) -> Display:
    """What suits a console."""
    if quiet:
        return Quiet(console)
    return LiveTable(console) if console.is_terminal else Lines(console)


class Quiet:
    """Problems alone."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, happening: Happening) -> None:
        if happening.problem:
            _print(self._console, happening)

    def show(self, view: Callable[[], View]) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """A line for every event, and every few seconds one that sums up."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, time.monotonic()

    def say(self, happening: Happening) -> None:
        if happening.kind == "end":
            self._last = math.inf  # the table comes next, and says it all
        if happening.text:
            _print(self._console, happening)

    def show(self, view: Callable[[], View]) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            self._console.print(summary(view()), highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        pass


class LiveTable:
    """A table that is renewed in place; events stand as lines above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._over = False
        self._lock = Lock()
        """Two threads that both see no table would begin two."""

    def say(self, happening: Happening) -> None:
        if happening.text:
            _print(self._console, happening)

    def show(self, view: Callable[[], View]) -> None:
        with self._lock:
            if self._live is None and not self._over:
                self._live = Live(
                    get_renderable=lambda: render(view()),
                    console=self._console,
                    refresh_per_second=REFRESHES_PER_S,
                    transient=True,
                )
                self._live.start()

    def close(self) -> None:
        with self._lock:
            self._over = True
            if self._live is not None:
                self._live.stop()
                self._live = None


class JsonLines:
    """One JSON object per event: `{"event": "epoch", "time": …, "key": …, …}`. A number that is not finite is null."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def say(self, happening: Happening) -> None:
        event = {"event": happening.kind, "time": round(time.time(), 3), **happening.facts}
        line = json.dumps(finite(event), ensure_ascii=False, allow_nan=False)
        with suppress(OSError):  # who read them has gone, or their disk is full: no reason for a trial to fail
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def show(self, view: Callable[[], View]) -> None:
        pass

    def close(self) -> None:
        pass


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(view: View) -> Group:
    """A view as tables."""
    head = " · ".join(filter(None, [_stages(view), _slots(view), str(view.counts), _left(view)]))
    parts: list[Any] = [Text(head)]
    if view.rows:
        parts.append(_running(view.rows))
    if view.best:
        parts.append(_best(view.best, "best" if view.over else "best so far"))
    return Group(*parts)


def summary(view: View) -> str:
    """A view in one line."""
    best = view.best[0] if view.best else None
    shown = f"best {best.title} {best.top1:.2f} % ({best.rule}, n={best.seeds})" if best else ""
    return " · ".join(filter(None, [_stages(view), _slots(view), str(view.counts), _left(view), shown]))


def _stages(view: View) -> str:
    return ", ".join(f"{stage.name} {_share(stage, view)}" for stage in view.stages)


def _share(stage: Stage, view: View) -> str:
    """How much of a stage has ended; of a search nobody knows before its end how much it will draw."""
    if stage.name != SEARCH or view.over or view.searched == stage.trials:
        return f"{stage.ended}/{stage.trials}"
    if view.searched is None:
        return f"{stage.ended} of {stage.trials} so far"
    return f"{stage.ended} of at most {max(view.searched, stage.trials)}"


def _slots(view: View) -> str:
    return f"{view.busy} of {view.slots} slot{'s' * (view.slots != 1)} busy" if view.slots else ""


def _left(view: View) -> str:
    return "" if view.left_s is None else f"about {duration(view.left_s)} left"


def _running(rows: tuple[Row, ...]) -> Table:
    asked = any(row.heard_s is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    for heading in ("running", "epoch", "top-1", "images/s", "left", *(["heard of"] if asked else [])):
        table.add_column(heading, overflow="fold")
    for row in rows[:ROWS]:
        heard = "" if row.heard_s is None else f"{duration(row.heard_s)} ago"
        table.add_row(Text(row.title), *_progress(row), *([heard] if asked else []))
    if len(rows) > ROWS:
        table.add_row(Text(f"and {len(rows) - ROWS} more"))
    return table


def _progress(row: Row) -> tuple[str, str, str, str]:
    left = "" if row.left_s is None else duration(row.left_s)
    record = row.record
    if record is None:
        return "starting", "", "", left
    measured, images = top1(record), speed(record)
    shown = "" if measured is None else f"{measured[0]:.2f} % {measured[1]}"
    return reached(record), shown, "" if images is None else f"{images:,.0f}", left


def _best(methods: tuple[Best, ...], heading: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in (heading, "top-1", "n", "measured on"):
        table.add_column(name)
    for best in methods[:METHODS]:
        table.add_row(Text(best.title), f"{best.top1:.2f} %", str(best.seeds), best.rule)
    if len(methods) > METHODS:
        table.add_row(Text(f"and {len(methods) - METHODS} more"))
    return table


def _print(console: Console, happening: Happening) -> None:
    mark = "[yellow]![/] " if happening.problem else ""
    console.print(f"{mark}{escape(happening.text)}", highlight=False, soft_wrap=True)
