"""Runs a plan: what is done stays done, teachers before students, failures tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import ValidationError

from otkd.core.errors import CheckpointError
from otkd.core.layout import Layout
from otkd.core.records import FanOut, TrialResult
from otkd.core.trial import Trial
from otkd.sweep.cohorts import cohorts
from otkd.sweep.live import Progress
from otkd.sweep.plan import Plan, Planned
from otkd.sweep.runner import Runner


class Outcome(NamedTuple):
    """What became of a plan's trials."""

    finished: int
    diverged: tuple[str, ...]
    """Titles and reasons."""
    undone: tuple[str, ...]
    """Titles of trials that could not be trained."""


class Broadcast(FanOut):
    """The sinks of a sweep as one listener; notes go to the person."""

    def __init__(self, progress: Progress, *sinks: object) -> None:
        super().__init__(*sinks, progress)  # type: ignore[arg-type]
        self.note = progress.note


def execute(plan: Plan, runner: Runner, listener: Broadcast, progress: Progress, layout: Layout) -> Outcome:
    """Train what is not done yet.

    Raises:
        StorageError: the disk refuses; everything written so far is whole, and the same command goes on from there.
    """
    resources = plan.spec.resources
    stages = (
        ("teachers", plan.teachers, resources.teacher_cpu or resources.cpu),
        ("students", plan.students, resources.cpu),
    )
    for stage, planned, cpu in stages:
        for attempt in range(1 + resources.retries):
            pending = _trainable(planned, layout)
            if not pending:
                break
            if attempt:
                listener.note(f"trying {len(pending)} of the {stage} again")
            progress.begin_stage(stage, pending, plan.pending(layout))
            runner.run(cohorts(pending, runner.slots(cpu), resources.cohort), cpu, listener)
    return outcome(plan, layout)


def outcome(plan: Plan, layout: Layout) -> Outcome:
    """How things stand with every trial of a plan."""
    results = [(planned.label.title, result_of(planned.trial, layout)) for planned in plan.all]
    return Outcome(
        finished=sum(result is not None and result.status == "finished" for _, result in results),
        diverged=tuple(f"{title}: {r.reason}" for title, r in results if r and r.status == "diverged"),
        undone=tuple(title for title, result in results if result is None),
    )


def _trainable(planned: Sequence[Planned], layout: Layout) -> list[Trial]:
    """Trials that are not done and whose teacher, if they have one, is sound."""
    trials = {item.trial.key: item.trial for item in planned}
    pending = [trial for key, trial in trials.items() if not layout.trial(key).done]
    return [trial for trial in pending if trial.teacher is None or _sound(trial.teacher, layout)]


def _sound(teacher: Trial, layout: Layout) -> bool:
    result = result_of(teacher, layout)
    return result is not None and result.status == "finished"


def result_of(trial: Trial, layout: Layout) -> TrialResult | None:
    """The result of a trial that has ended in this `runs/` directory, or None."""
    path = layout.trial(trial.key).result
    if not path.exists():
        return None
    try:
        return TrialResult.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        raise CheckpointError(f"{path} is damaged; delete its folder to train that trial again.") from None
