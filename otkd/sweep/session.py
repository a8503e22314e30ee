"""One run of a plan with its sinks: replay what the tracker lacks, train what is not done, close in order."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from otkd.core.layout import Layout
from otkd.sweep.live import Progress
from otkd.sweep.plan import Plan
from otkd.sweep.run import Broadcast, execute, result_of
from otkd.sweep.runner import Runner
from otkd.track.jsonl import JsonlSink
from otkd.track.mlflow import MlflowSink

FLUSH_S = 120.0
"""Seconds that the tracking store gets at the end to take what is left."""


class Options(NamedTuple):
    """How to run; nothing here can change a result."""

    data_dir: Path | None = None
    local: bool = False
    """In this process, without Ray."""
    address: str = "local"
    """A Ray cluster to join."""
    device: str = "auto"


class Session:
    """A plan with everything that listens to it. Use as a context manager.

    Raises:
        TrackingError: on entry, when the tracking store does not answer; on exit, when records could not be logged.
    """

    def __init__(self, plan: Plan, layout: Layout, console: Console) -> None:
        self.plan, self.layout, self.console = plan, layout, console

    def __enter__(self) -> Session:
        self.tracker = MlflowSink(self.plan.info, self.layout)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.tracker.close()
        except Exception:
            if kind is None:
                raise  # otherwise the first error is the one to tell

    def replay(self) -> int:
        """Log results that are on disk and not in the tracking store (it was away, or is new). Returns how many."""
        known = self.tracker.finished()
        replayed = 0
        for trial in (trial for key, trial in self.plan.trials.items() if key not in known):
            result = result_of(trial, self.layout)
            if result is not None:
                self.tracker.start(trial)
                self.tracker.finish(result)
                replayed += 1
        return replayed

    def train(self, options: Options) -> None:
        """Train what is not done yet, and wait until the tracking store has all of it.

        Raises:
            OtkdError: data, disk or cluster; everything that has ended is kept.
        """
        progress = Progress(self.plan.info.labels, self.console)
        journal = JsonlSink(self.layout.records / f"{self.plan.info.name}.jsonl")
        try:
            with _runner(self.plan, self.layout, options) as runner:
                execute(self.plan, runner, Broadcast(progress, journal, self.tracker), progress, self.layout)
        finally:
            progress.close()
            journal.close()

    def flush(self) -> None:
        """Wait until the tracking store has everything.

        Raises:
            TrackingError: it is away; what it lacks is kept, and logged by the next run.
        """
        if self.tracker.pending:
            self.console.print("logging to MLflow …", highlight=False)
        if not self.tracker.flush(FLUSH_S):
            self.tracker.close(0)


def _runner(plan: Plan, layout: Layout, options: Options) -> Runner:
    from otkd.train.engine import Environment, fetch

    environment = Environment(layout=layout, data_dir=options.data_dir, device=options.device)
    fetch(plan.all[0].trial.data, environment)
    if options.local:
        from otkd.sweep.local import LocalRunner

        return LocalRunner(environment)
    from otkd.sweep.tune import RayRunner

    return RayRunner(environment, plan.spec.resources, options.address)
