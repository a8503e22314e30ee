"""One run of a plan with its sinks: replay what the tracker lacks, train what is not done, close in order."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from rich.console import Console

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.sweep.live import Progress
from otkd.sweep.plan import Plan
from otkd.sweep.run import Broadcast, execute, result_of
from otkd.sweep.runner import NoteHandler, Runner
from otkd.track.jsonl import JsonlSink
from otkd.track.mlflow import MlflowSink

HERE = "local"

FLUSH_S = 120.0
"""Seconds that the tracking store gets at the end to take what is left."""


class Options(NamedTuple):
    """How to run; nothing here can change a result."""

    data_dir: Path | None = None
    local: bool = False
    """In this process, without Ray."""
    address: str = HERE
    """A Ray cluster to join."""
    device: str = "auto"


class Session:
    """A plan with everything that listens to it. Use as a context manager.

    Raises:
        OtkdError: on entry, when another sweep runs in the same `runs/`.
        TrackingError: on entry, when the tracking store does not answer; on exit, when records could not be logged.
    """

    def __init__(self, plan: Plan, layout: Layout, console: Console) -> None:
        self.plan, self.layout, self.console = plan, layout, console

    def __enter__(self) -> Session:
        self._lock = _lock(self.layout)
        self.tracker = MlflowSink(self.plan.info, self.layout)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.tracker.close()
        except Exception:
            if kind is None:
                raise  # otherwise the first error is the one to tell
        finally:
            self._lock.close()

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
        """Train what is not done yet.

        Raises:
            OtkdError: data, disk or cluster; everything that has ended is kept.
        """
        progress = Progress(self.plan, self.console)
        with ExitStack() as stack:
            stack.callback(progress.close)
            journal = JsonlSink(self.layout.records / f"{self.plan.info.name}.jsonl")
            listener = Broadcast(progress, journal, self.tracker)
            stack.enter_context(_notes(listener))
            with _runner(self.plan, self.layout, options) as runner:
                execute(self.plan, runner, listener, progress, self.layout)
            journal.close()
        self.replay()  # a worker that died between writing a result and telling of it

    def flush(self) -> None:
        """Wait until the tracking store has everything.

        Raises:
            TrackingError: it is away; what it lacks is kept, and logged by the next run.
        """
        if self.tracker.pending:
            self.console.print("logging to MLflow …", highlight=False)
        if not self.tracker.flush(FLUSH_S):
            self.tracker.close(0)


def _lock(layout: Layout) -> IO[str]:
    """A lock that keeps two drivers off one `runs/`; the system releases it when the process ends, however it ends."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        file = (layout.root / ".lock").open("a+", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OtkdError(f"another sweep is running in {layout.root}; wait for it, or name another --runs.") from None
    except OSError as error:
        raise StorageError(f"cannot write {layout.root}: {error.strerror}. Name another --runs.") from None
    return file


@contextmanager
def _notes(listener: Broadcast) -> Iterator[None]:
    """Warnings of otkd's own loggers go to the person, not across the live display."""
    logger, handler = logging.getLogger("otkd"), NoteHandler(listener)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _runner(plan: Plan, layout: Layout, options: Options) -> Runner:
    from otkd.train.device import pick
    from otkd.train.engine import Environment, fetch
    from otkd.train.weights import take_in

    environment = Environment(
        layout=layout, data_dir=options.data_dir, device=options.device, workers=plan.spec.resources.workers
    )
    fetch(plan.spec.data, environment)
    take_in(layout, plan.weights, plan.spec.data.card)
    if options.address == HERE:
        pick(options.device)
    if options.local and plan.spec.resources.gpus_per_trial > 1:
        raise OtkdError(
            "resources.gpus_per_trial: --local trains in this process alone; leave --local out, or set it to 1."
        )
    if options.local:
        from otkd.sweep.local import LocalRunner

        return LocalRunner(environment)
    if options.address == HERE:  # read by Ray on import: listen on 127.0.0.1 alone, anyone who reaches Ray can run code
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from otkd.sweep.tune import RayRunner

    return RayRunner(environment, plan.spec.resources, options.address)
