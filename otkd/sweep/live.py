"""What is told while a sweep runs: counts, trials in training, the best so far, events, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import RLock
from typing import Any, NamedTuple, Protocol

from otkd.core import names
from otkd.core.records import EpochRecord, SweepInfo, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.cohorts import cohorts
from otkd.sweep.estimate import HERE, Clock, Paces, Task, all_epochs, by_stage, cores, machine, makespan
from otkd.sweep.plan import Plan
from otkd.sweep.tally import NOTHING, SEARCH, TEACHERS, Best, Counts, End, Stage, Tally, ToCome

ESTIMATE_EVERY_S = 2.0
"""Seconds between estimates of the time left."""


class Happening(NamedTuple):
    """Something that a person or a program may want to know at once."""

    kind: str
    """`stage`, `start`, `epoch`, `finish`, `note` or `end`."""
    facts: dict[str, Any]
    text: str = ""
    """For a person; empty where the view tells it."""
    problem: bool = False
    """Worth a line even where only problems are wanted."""


class Row(NamedTuple):
    """A trial in training."""

    key: str
    title: str
    record: EpochRecord | None
    """Its last epoch, None before the first."""
    left_s: float | None = None
    """Seconds until it ends, where that can be told."""
    heard_s: float | None = None
    """Seconds since it was last heard of, where that is asked."""


class View(NamedTuple):
    """How a sweep stands."""

    name: str
    stages: tuple[Stage, ...]
    busy: int
    slots: int
    """0 where it is not known."""
    counts: Counts
    rows: tuple[Row, ...]
    best: tuple[Best, ...]
    left_s: float | None
    """Seconds until the sweep ends, where that can be told."""
    searched: int | None = None
    """Trials that its search has at most; None where it is not known."""
    over: bool = False
    """Whether all has ended."""


class Display(Protocol):
    """Where progress is shown. Called from several threads."""

    def say(self, happening: Happening) -> None:
        """Something has happened."""

    def show(self, view: Callable[[], View]) -> None:
        """The view has changed; to be asked for when it is shown."""

    def close(self) -> None:
        """Nothing more will come."""


class Progress:
    """A listener that counts what trials say, works out the time left, and tells displays.

    Args:
        keep: is given the sweep whenever its labels have grown.
        earlier: paces of earlier trials, for what has not been measured in this run.
    """

    def __init__(
        self,
        plan: Plan,
        *displays: Display,
        keep: Callable[[SweepInfo], None] | None = None,
        earlier: Paces | None = None,
    ) -> None:
        self.displays, self._keep = displays, keep
        self.slots: Callable[[float], int] = lambda cpu: here.slots(self._resources, cpu)
        """How many cohorts of so many CPU cores run at the same time; to be set when a runner is there."""
        here = machine()
        self._name, self._resources, self._lock = plan.info.name, plan.spec.resources, RLock()
        self._tally = Tally(plan.info.labels)
        self._trials = dict(plan.trials)
        self._stage = _Stage()
        self._searched: int | None = None
        self._clock = Clock(
            earlier or Paces(),
            lambda trial: (HERE, *here.devices(self._resources, cores(trial, self._resources))),
        )
        self._heard: dict[str, float] = {}
        """Trial → when it was last heard of, on this process's monotonic clock."""
        self._left: tuple[float, float | None] = (-ESTIMATE_EVERY_S, None)
        """When the time left was worked out, and what it was."""

    def plan(self, info: SweepInfo) -> None:
        """Take the sweep's labels anew: those of a search grow."""
        with self._lock:
            self._tally.present(info.labels)
        if self._keep is not None:
            self._keep(info)
        self._show()

    def ended(self, ends: Mapping[str, End]) -> None:
        """Count trials that have ended before."""
        with self._lock:
            for key, end in ends.items():
                self._tally.end(key, end)

    def reopen(self, keys: Iterable[str]) -> None:
        """Count trials as not ended."""
        with self._lock:
            for key in keys:
                self._tally.ended.pop(key, None)

    def begin_stage(
        self, name: str, trials: Sequence[Trial], left: Sequence[Trial], to_come: ToCome = NOTHING, new: int = 0
    ) -> None:
        """A stage (teachers, search, students) of so many trials begins, with so many left in the whole sweep.

        Args:
            new: trials that the search may yet name, at most; among those to come.
        """
        with self._lock:
            self._tally.running.clear()
            self._trials |= {trial.key: trial for trial in trials}
            self._stage = self._begin(name, trials, left, to_come)
            self._searched = self._tally.searched + new
            self._left = (-ESTIMATE_EVERY_S, None)
            facts = {
                "stage": name,
                "trials": len(trials) or to_come.searched,
                "left": len(left) + sum(to_come),
                "slots": self._stage.slots,
            }
        self._say(Happening("stage", facts, f"{name}: {len(trials)} to train" if trials else f"{name} begins"))

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        key = trial.key
        with self._lock:
            self._trials.setdefault(key, trial)
            self._tally.start(key)
            self._heard[key] = time.monotonic()
            labels = self._tally.labels.get(key, [])
        facts = labels[0].model_dump(include={"role", "pair", "method", "axes", "seed"}) if labels else {}
        self._say(Happening("start", {**self._named(key), **facts}))

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""
        with self._lock:
            self._tally.epoch(record)
            self._heard[record.key] = time.monotonic()
            if record.key in self._trials:
                self._clock.learn(record.key, self._trials[record.key], record.metrics)
        facts = record.model_dump(include={"stage", "epoch", "epochs", "metrics"})
        self._say(Happening("epoch", {**self._named(record.key), **facts}))

    def finish(self, result: TrialResult) -> None:
        """A trial has ended."""
        with self._lock:
            self._tally.end(result.key, End(result.status, result.metrics, result.reason))
        named = self._named(result.key)
        fine = result.status == "finished"
        text = "" if fine else f"{named['title']}: {result.status}: {result.reason}"
        facts = result.model_dump(include={"status", "reason"})
        facts["metrics"] = self._figures(result)
        self._say(Happening("finish", {**named, **facts}, text, result.status in ("diverged", "failed")))

    def note(self, text: str) -> None:
        """A person should know of this."""
        self._say(Happening("note", {"text": text}, text, problem=True))

    def end(self, status: str, reason: str = "") -> None:
        """The session ends: `finished`, `incomplete`, `stopped` or `failed`."""
        with self._lock:
            self._tally.running.clear()
            counts = self._tally.counts()
        self._say(Happening("end", {"status": status, "reason": reason, **counts._asdict()}))

    def close(self) -> None:
        """Take down what is shown."""
        for display in self.displays:
            display.close()

    def unfinished(self) -> list[str]:
        """Keys of the trials that have begun and not ended."""
        with self._lock:
            return list(self._tally.running)

    def view(self) -> View:
        """How the sweep stands."""
        with self._lock:
            return View(
                name=self._name,
                stages=tuple(self._tally.stages()),
                busy=self._tally.slots(self._stage.places),
                slots=self._stage.slots,
                counts=self._tally.counts(),
                rows=tuple(self._rows()),
                best=tuple(self._tally.best()),
                left_s=self._time_left(),
                searched=self._searched,
            )

    def _figures(self, result: TrialResult) -> Mapping[str, float]:
        """As MLflow has them: those on the test set of a search's candidate by a name of their own."""
        labels = self._tally.labels.get(result.key)
        if not labels or not labels[0].is_candidate:
            return result.metrics
        from otkd.track.entities import set_apart  # imports mlflow, which has to be there only to train

        return set_apart(result.metrics)

    def _named(self, key: str) -> dict[str, str]:
        return {"key": key, "title": self._tally.title(key)}

    def _say(self, happening: Happening) -> None:
        """Never with the lock held: a display's thread asks for the view while it holds a lock of its own."""
        for display in self.displays:
            display.say(happening)
        self._show()

    def _show(self) -> None:
        for display in self.displays:
            display.show(self.view)

    def _begin(self, name: str, trials: Sequence[Trial], left: Sequence[Trial], to_come: ToCome) -> _Stage:
        slots = self.slots(cores(trials[0], self._resources) if trials else self._resources.cpu)
        if name == SEARCH:
            return _Stage(slots)  # its trials are not known in advance
        now = {trial.key for trial in trials}
        later = [t for t in by_stage(left)[1] if t.key not in now] if name == TEACHERS else []
        most, slots_later = self._resources.cohort, self.slots(self._resources.cpu)
        groups = [[trial.key for trial in group] for group in cohorts(trials, slots, most)]
        return _Stage(slots, groups, slots_later, cohorts(later, slots_later, most), open_end=any(to_come))

    def _rows(self) -> Iterator[Row]:
        for key, record in self._tally.running.items():
            yield Row(key, self._tally.title(key), record, self._row_left(key))

    def _row_left(self, key: str) -> float | None:
        """Seconds until a trial ends: in its cohort all train in turn, for as many epochs as it has left."""
        epochs = self._epochs_left(key)
        if epochs is None:
            return None
        mates = [mate for mate in self._group(key) if mate in self._tally.running]
        tasks = [Task(self._trials[mate], min(epochs, self._epochs_left(mate) or 0)) for mate in mates]
        return self._less_elapsed(self._clock.cohort(tasks), [key])

    def _time_left(self) -> float | None:
        """Seconds until the sweep ends, worked out anew every few seconds."""
        now = time.monotonic()
        at, left = self._left
        if now - at >= ESTIMATE_EVERY_S:
            left = self._work_out_time_left()
            self._left = (now, left)
        return left

    def _work_out_time_left(self) -> float | None:
        """None where the pace of some trial is not known, and in a search: what it will draw and stop is not either."""
        stage = self._stage
        if stage.open_end:
            return None
        open_groups = [[key for key in group if key not in self._tally.ended] for group in stage.groups]
        busy, waiting = list[float | None](), list[float | None]()
        for group in filter(None, open_groups):
            tasks = [Task(self._trials[key], self._epochs_left(key) or 0) for key in group if key in self._trials]
            running = [key for key in group if key in self._tally.running]
            (busy if running else waiting).append(self._less_elapsed(self._clock.cohort(tasks), running))
        later = [self._clock.cohort([Task(trial, all_epochs(trial)) for trial in group]) for group in stage.later]
        if None in (*busy, *waiting, *later) or not (busy or waiting):
            return None
        known = [[length for length in part if length is not None] for part in (busy, waiting, later)]
        return makespan(stage.slots, known[0], known[1]) + makespan(stage.slots_later, (), known[2])

    def _group(self, key: str) -> list[str]:
        place = self._stage.places.get(key)
        return [key] if place is None else self._stage.groups[place]

    def _epochs_left(self, key: str) -> float | None:
        trial, record = self._trials.get(key), self._tally.running.get(key)
        if trial is None:
            return None
        if record is None:
            return all_epochs(trial)
        return trial.train.epochs - record.epoch if record.stage == "train" else all_epochs(trial) - record.epoch

    def _less_elapsed(self, seconds: float | None, keys: Sequence[str]) -> float | None:
        """What is left of a duration that has been running since the last of these trials was heard of."""
        last = max((self._heard[key] for key in keys if key in self._heard), default=None)
        if seconds is None or last is None:
            return seconds
        return max(seconds - (time.monotonic() - last), 0.0)


class _Stage:
    """What trains now, and what comes after it.

    Args:
        groups: keys of the trials that train together.
        open_end: a search follows, which nobody can foresee.
    """

    def __init__(
        self,
        slots: int = 0,
        groups: Sequence[list[str]] = (),
        slots_later: int = 1,
        later: Sequence[list[Trial]] = (),
        open_end: bool = False,
    ) -> None:
        self.open_end = open_end
        self.slots, self.groups, self.slots_later, self.later = slots, list(groups), slots_later, list(later)
        self.places = {key: place for place, group in enumerate(self.groups) for key in group}


def speed(record: EpochRecord) -> float | None:
    """Images per second of an epoch."""
    return record.metrics.get(names.IMAGES_PER_S)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
