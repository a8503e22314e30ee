"""Runs a plan: what is done stays done, teachers before students, failures tried again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from otkd.core.errors import StorageError
from otkd.core.layout import Layout
from otkd.core.records import FanOut, SweepInfo, TrialResult
from otkd.core.trial import Trial
from otkd.sweep import stopping
from otkd.sweep.cohorts import cohorts
from otkd.sweep.earlier import earlier
from otkd.sweep.live import Progress
from otkd.sweep.plan import Plan, Planned
from otkd.sweep.results import failure_of, is_sound, result_of
from otkd.sweep.runner import Runner, hopeless
from otkd.sweep.tally import SEARCH, End
from otkd.sweep.tried import Tried, ready

STATES = ("finished", "diverged", "failed", "waiting", "open", "pruned")
"""How a trial may stand when a session ends."""


class Outcome(NamedTuple):
    """What became of a plan's trials."""

    finished: int
    diverged: tuple[str, ...]
    """Titles and reasons."""
    failed: tuple[str, ...]
    """Titles and reasons."""
    waiting: tuple[str, ...]
    """Titles of students whose teacher failed or diverged."""
    undone: tuple[str, ...]
    """Titles of the other trials that have not ended."""
    pruned: int = 0
    """Those that a search has stopped."""

    @property
    def open(self) -> int:
        """Trials that have not ended, each as often as the sweep presents it."""
        return len(self.failed) + len(self.waiting) + len(self.undone)


class Broadcast(FanOut):
    """The sinks of a sweep as one listener; notes go to the person."""

    def __init__(self, progress: Progress, *sinks: object) -> None:
        super().__init__(*sinks, progress)  # type: ignore[arg-type]
        self.note = progress.note

    def plan(self, info: SweepInfo) -> None:
        """The sweep has new trials."""
        for sink in self.sinks:
            tell = getattr(sink, "plan", None) or getattr(sink, "describe", None)
            if tell is not None:
                tell(info)


def execute(
    plan: Plan,
    runner: Runner,
    listener: Broadcast,
    progress: Progress,
    layout: Layout,
    held: frozenset[str] = frozenset(),
) -> Outcome:
    """Train what is not done yet: teachers and students, or the search and then its winners again.

    Once somebody asks to stop, nothing more begins.

    Args:
        plan: as the file has it, without what its search has led to.
        held: keys of trials that are not to be tried, and whose students wait.

    Raises:
        OtkdError: the search is none that this runner can do.
        StorageError: the disk refuses; everything written so far is whole, and the same command goes on from there.
    """
    from otkd.sweep import tuning  # trains: to print a plan takes no torch

    if plan.studies:
        tuning.expect_possible(plan.spec.search, runner)
    _train(plan, runner, listener, progress, layout, held)
    if (before := Tried(plan, layout)).is_left and not stopping.asked(layout):
        progress.begin_stage(SEARCH, [], [], before.to_come, before.new * len(plan.spec.seeds))
        tuning.search(plan, runner, listener, layout)
    tried = Tried(plan, layout)
    if tried.final is not None:
        listener.plan(tried.whole.info)
        _train(tried.final, runner, listener, progress, layout, held)
    return outcome(plan, layout)


def _train(
    plan: Plan, runner: Runner, listener: Broadcast, progress: Progress, layout: Layout, held: frozenset[str]
) -> None:
    """Train teachers, then students."""
    resources = plan.spec.resources
    stages = (
        ("teachers", plan.teachers, resources.teacher_cpu or resources.cpu),
        ("students", plan.students, resources.cpu),
    )
    for stage, planned, cpu in stages:
        for attempt in range(1 + resources.retries):
            pending = _trainable(planned, layout, held)
            if attempt:
                pending = [trial for trial in pending if not _hopeless(trial, layout)]
            if not pending or stopping.asked(layout):
                break
            if attempt:
                listener.note(f"trying {len(pending)} of the {stage} again")
            left = [trial for trial in plan.pending(layout) if trial.key not in held]
            tried = Tried(plan, layout)
            progress.begin_stage(stage, pending, left, tried.to_come, tried.new * len(plan.spec.seeds))
            runner.run(cohorts(pending, runner.slots(cpu), resources.cohort), cpu, listener)
            _settle(plan, listener, progress, layout)


def outcome(plan: Plan, layout: Layout) -> Outcome:
    """How things stand with every trial of a plan."""
    tried = Tried(plan, layout)
    found = _ends(tried, layout)
    titles: dict[str, list[str]] = {state: [] for state in STATES}
    for trial, label in tried.whole.all:
        end = found.get(trial.key, End("waiting" if waits(trial, found) else "open", {}))
        titles[end.status].append(f"{label.title}: {end.reason}" if end.reason else label.title)
    able = ready(plan, layout)
    titles["waiting"] += [study.title for study in plan.studies if study not in able]
    finished, diverged, failed, waiting, undone, pruned = (tuple(titles[state]) for state in STATES)
    return Outcome(len(finished), diverged, failed, waiting, undone, len(pruned))


def ends(plan: Plan, layout: Layout) -> dict[str, End]:
    """How the trials of a plan have ended so far, by key; those that failed may be tried again.

    Raises:
        CheckpointError: a result is damaged.
    """
    return _ends(Tried(plan, layout), layout)


def _ends(tried: Tried, layout: Layout) -> dict[str, End]:
    trials = tried.whole.trials
    kept = earlier(layout, trials)
    found = {key: End("pruned", {}, reason) for key, reason in tried.pruned.items()}
    for key, trial in trials.items():
        end = kept.get(key) or result_of(trial, layout) or failure_of(trial, layout)
        if end is not None:
            found[key] = End(end.status, end.metrics, end.reason)
    return found


def is_left(plan: Plan, layout: Layout, held: frozenset[str]) -> bool:
    """Whether a session has something to train or to search.

    Args:
        held: trials that failed before, and are not to be tried.
    """
    tried = Tried(plan, layout)
    found, known = _ends(tried, layout), tried.whole
    settled = {key for key, end in found.items() if end.status == "pruned"} | held
    pending = [trial for trial in known.pending(layout) if trial.key not in settled and not waits(trial, found)]
    return bool(pending) or tried.is_left


def to_train(plan: Plan, found: Mapping[str, End]) -> list[Trial]:
    """What the next session of a plan trains: neither what has ended in any way, nor what waits for such a teacher."""
    return [trial for key, trial in plan.trials.items() if key not in found and not waits(trial, found)]


def waits(trial: Trial, found: Mapping[str, End]) -> bool:
    """Whether a trial's teacher has ended in a way from which nothing can be learned."""
    teacher = None if trial.teacher is None else found.get(trial.teacher.key)
    return teacher is not None and teacher.status in ("failed", "diverged")


def failed_before(plan: Plan, layout: Layout) -> frozenset[str]:
    """Keys of the trials that failed in an earlier run."""
    folders = {key: layout.trial(key) for key in Tried(plan, layout).whole.trials}
    return frozenset(key for key, folder in folders.items() if folder.failed.exists() and not folder.done)


def clear_failures(plan: Plan, layout: Layout) -> list[str]:
    """Have trials that failed go on, and those that diverged begin anew; their result is moved aside.

    Returns:
        Their keys.

    Raises:
        StorageError: the disk refuses.
    """
    keys = [key for key, end in ends(plan, layout).items() if end.status in ("failed", "diverged")]
    for folder in map(layout.trial, keys):
        try:
            folder.failed.unlink(missing_ok=True)
            if folder.done:
                folder.result.replace(folder.set_aside)
        except OSError as error:
            raise StorageError(f"cannot change {folder.path}: {error.strerror}.") from error
    return keys


def _settle(plan: Plan, listener: Broadcast, progress: Progress, layout: Layout) -> None:
    """Tell the end of trials whose worker was lost before it could; not of those that were asked to stop."""
    now = time.time()
    for key in progress.unfinished() if not stopping.asked(layout) else ():
        trial = plan.trials.get(key)
        known = trial and (result_of(trial, layout) or failure_of(trial, layout))
        reason = "its worker was lost; the events of the sweep say why"
        listener.finish(known or TrialResult(key=key, status="failed", started=now, ended=now, reason=reason))


def _trainable(planned: Sequence[Planned], layout: Layout, held: frozenset[str]) -> list[Trial]:
    """Trials that are not done, nor held back, and whose teacher, if they have one, is sound."""
    trials = {item.trial.key: item.trial for item in planned}
    pending = [trial for key, trial in trials.items() if key not in held and not layout.trial(key).done]
    teachers = {trial.teacher.key: trial.teacher for trial in pending if trial.teacher is not None}
    sound = {key for key, teacher in teachers.items() if is_sound(teacher, layout)}
    return [trial for trial in pending if trial.teacher is None or trial.teacher.key in sound]


def _hopeless(trial: Trial, layout: Layout) -> bool:
    """Whether it has failed in a way that another attempt cannot mend."""
    failure = failure_of(trial, layout)
    return failure is not None and hopeless(failure)
