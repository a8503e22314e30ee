"""What a person sees while a sweep runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from otkd.core import names
from otkd.core.records import EpochRecord, Label, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.plan import Plan

LINE_EVERY_S = 10.0
"""Seconds between plain progress lines."""


class Progress:
    """A listener that shows trials done of all, those running with epoch and top-1, the best so far, time left."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._labels: dict[str, Label] = {}
        for planned in plan.all:
            self._labels.setdefault(planned.trial.key, planned.label)
        self._all = len(plan.trials)
        self._pending: set[str] = set()
        self._console = console
        self._results: dict[str, TrialResult] = {}
        self._running: dict[str, EpochRecord | None] = {}
        self._live: Live | None = None
        self._begin = self._line = time.monotonic()
        self._epochs_done = 0
        self._epochs_all = 0
        self._stage = ""

    def begin_stage(self, name: str, trials: Sequence[Trial], left: Sequence[Trial]) -> None:
        """A stage (teachers, students) of so many trials begins, with so many left in the whole sweep."""
        self._pending = {trial.key for trial in left}
        self._stage = name
        self._begin = time.monotonic()
        self._epochs_done = 0
        self._epochs_all = sum(trial.train.epochs for trial in trials)
        self._console.print(f"{name}: {len(trials)} to train", highlight=False)
        if self._console.is_terminal and self._live is None:
            self._live = Live(self._view(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._refresh()

    def start(self, trial: Trial) -> None:
        self._running.setdefault(trial.key, None)
        self._refresh()

    def epoch(self, record: EpochRecord) -> None:
        self._running[record.key] = record
        self._epochs_done += 1
        self._refresh()

    def finish(self, result: TrialResult) -> None:
        self._running.pop(result.key, None)
        self._results[result.key] = result
        if result.status != "failed":
            self._pending.discard(result.key)
        if result.status != "finished" and result.key in self._labels:
            self.note(f"{self._labels[result.key].title}: {result.status}: {result.reason}")
        self._refresh()

    def note(self, text: str) -> None:
        """Print a line above the live view."""
        self._console.print(f"[yellow]![/] {escape(text)}", highlight=False)

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _refresh(self) -> None:
        if self._live:
            self._live.update(self._view())
        elif time.monotonic() - self._line >= LINE_EVERY_S:
            self._line = time.monotonic()
            self._console.print(self._summary(), highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("running", "epoch", "top-1"):
            table.add_column(heading)
        for key, record in list(self._running.items())[:12]:
            title = Text(self._labels[key].title if key in self._labels else key)
            table.add_row(title, *(_progress(record) if record else ("starting", "")))
        return Group(Text(self._summary()), table)

    def _summary(self) -> str:
        done = self._all - len(self._pending)
        parts = [f"{self._stage}: {done} of {self._all} done, {len(self._running)} running", self._left(), self._best()]
        return " · ".join(filter(None, parts))

    def _best(self) -> str:
        """The best student so far: by validation where there is a split, else by the test set's last epoch."""
        students = [
            result
            for result in self._results.values()
            if result.status == "finished" and result.key in self._labels and self._labels[result.key].role == "student"
        ]
        for metric, rule in ((names.BEST_VAL_TOP1, "val"), (names.test("last", names.TEST_TOP1), "test, last epoch")):
            measured = [result for result in students if metric in result.metrics]
            if measured:
                best = max(measured, key=lambda result: result.metrics[metric])
                return f"best {self._labels[best.key].title} {best.metrics[metric]:.2f} % ({rule})"
        return ""

    def _left(self) -> str:
        if not self._epochs_done or not self._epochs_all:
            return ""
        elapsed = time.monotonic() - self._begin
        left = elapsed * max(self._epochs_all - self._epochs_done, 0) / self._epochs_done
        return f"epoch {self._epochs_done} of {self._epochs_all}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _progress(record: EpochRecord) -> tuple[str, str]:
    stage = "" if record.stage == "train" else f"{record.stage} "
    which = names.VAL_TOP1 if names.VAL_TOP1 in record.metrics else names.TRAIN_TOP1
    top1 = record.metrics.get(which)
    shown = "" if top1 is None else f"{top1:.2f} % {which.split('/')[0]}"
    return f"{stage}{record.epoch}/{record.epochs}", shown
