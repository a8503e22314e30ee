"""One run of a plan with its sinks: replay what the tracker lacks, train what is not done, close in order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.core.records import SweepInfo
from otkd.core.storage import Fetcher, Mirror, Storage, opened
from otkd.core.trial import Model
from otkd.sweep import lock, stopping
from otkd.sweep.displays import Quiet, for_person
from otkd.sweep.earlier import earlier
from otkd.sweep.estimate import measured
from otkd.sweep.journal import PlanFile, SessionFile, journal_file
from otkd.sweep.live import Display, Progress
from otkd.sweep.plan import Plan
from otkd.sweep.results import result_of
from otkd.sweep.run import Broadcast, clear_failures, ends, execute, failed_before, is_left, outcome
from otkd.sweep.runner import HERE, NoteHandler, Runner
from otkd.sweep.tally import End
from otkd.sweep.tried import Tried
from otkd.track.jsonl import JsonlSink
from otkd.track.mlflow import MlflowSink

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
    storage: str | None = None
    """In place of the sweep's own."""


class Session:
    """A plan with everything that listens to it. Use as a context manager.

    Args:
        console: where a person reads.
        display: where progress is shown; by default what suits the console.

    Raises:
        OtkdError: on entry, when another sweep runs in the same `runs/`.
        TrackingError: on entry, when the tracking store does not answer; on exit, when records could not be logged.
    """

    def __init__(self, plan: Plan, layout: Layout, console: Console, display: Display | None = None) -> None:
        self.plan, self.layout, self.console = plan, layout, console
        self._display = display or for_person(console)
        self._mirror = Mirror()
        self.stopped = False
        """Whether training ended because somebody asked to stop."""

    def __enter__(self) -> Session:
        with ExitStack() as undo:
            self._lock = lock.take(self.layout, self.plan.info.name)
            undo.callback(self._lock.release)
            self.tracker = MlflowSink(self.whole.info, self.layout)
            undo.callback(self.tracker.close)
            self._begin()
            undo.pop_all()
        return self

    def _begin(self) -> None:
        """Say in `runs/records/` what is going on."""
        self.held = failed_before(self.plan, self.layout)
        whole, paces, ended = self.whole, measured(self.layout), ends(self.plan, self.layout)
        self._named = set(whole.trials)
        self._plan_file = PlanFile(self.layout, whole.info)
        # from the session's file on nothing takes time: whoever is interrupted there could not say that it has ended
        displays = (self._display, SessionFile(self.layout, self.plan.info.name))
        self.progress = Progress(whole, *displays, keep=self._grow, earlier=paces)
        self.progress.ended(ended)

    def _grow(self, info: SweepInfo) -> None:
        """The search has named trials; of those that other sweeps have trained the storage and the counts learn."""
        self._plan_file.plan(info)
        new = {label.key for label in info.labels} - self._named
        self._named |= new
        begun = [folder for folder in map(self.layout.trial, new) if folder.done or folder.checkpoint.exists()]
        if begun and isinstance(self._mirror, Storage):
            self._mirror.reconcile(begun)
        found = earlier(self.layout, [folder.path.name for folder in begun]) if begun else {}
        self.progress.ended({key: End(entry.status, entry.metrics, entry.reason) for key, entry in found.items()})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        try:
            try:
                self._plan_file.close()
            finally:
                self.tracker.close()
        except Exception as problem:
            error = error or problem
            if kind is None:
                raise  # otherwise the first error is the one to tell
        finally:
            try:
                self._tell_the_end(error)
            finally:
                stopping.forget(self.layout)
                self._lock.release()

    def retry_failed(self) -> None:
        """Have this session try again what failed or diverged in an earlier one."""
        self.progress.reopen(clear_failures(self.plan, self.layout))
        self.held = frozenset()

    @property
    def whole(self) -> Plan:
        """The plan with what its search has led to so far."""
        return Tried(self.plan, self.layout).whole

    @property
    def is_left(self) -> bool:
        """Whether there is something to train, other than what failed before or waits for a teacher that did."""
        return is_left(self.plan, self.layout, self.held)

    def replay(self) -> int:
        """Log results that are on disk and not in the tracking store (it was away, or is new). Returns how many.

        The journal gets those as well, and the ends of trials whose driver died before it heard of them.
        """
        return self._replay(self.tracker.finished())

    def _replay(self, known: set[str]) -> int:
        replayed = 0
        with closing(JsonlSink(journal_file(self.layout, self.plan.info.name))) as journal:
            for trial in (trial for key, trial in self.whole.trials.items() if key not in known - journal.open):
                result = result_of(trial, self.layout)
                if result is not None:
                    journal.finish(result)
                if result is not None and trial.key not in known:
                    self.tracker.start(trial)
                    self.tracker.finish(result)
                    replayed += 1
        return replayed

    def train(self, options: Options) -> None:
        """Train what is not done yet. When somebody asks to stop on the way, it returns, and is `stopped`.

        Raises:
            OtkdError: data, disk or cluster; everything that has ended is kept.
        """
        mirror = self._mirror = _mirror(options.storage or self.plan.spec.storage)
        progress = self.progress
        with ExitStack() as stack:
            stack.callback(progress.close)
            journal = JsonlSink(journal_file(self.layout, self.plan.info.name))
            away = mirror.url is not None and options.address != HERE and not options.local
            fetchers = [Fetcher(mirror, self.layout)] if away else []
            listener = Broadcast(progress, *fetchers, journal, self.tracker)
            stack.enter_context(_notes(listener))
            with _runner(self.plan, self.layout, options, mirror) as runner:
                progress.slots = runner.slots
                stack.enter_context(stopping.heeding(self.layout, listener.note))
                execute(self.plan, runner, listener, progress, self.layout, self.held)
                self.stopped = stopping.asked(self.layout)
            journal.close()
        # a worker that died between writing a result and telling of it; the store need not answer just now
        self._replay(self.tracker.finished())

    def _tell_the_end(self, error: BaseException | None) -> None:
        """To programs, and to those who ask later."""
        if self.stopped or isinstance(error, KeyboardInterrupt):
            self.progress.end("stopped")
        elif error is not None:
            self.progress.end("failed", str(error) or type(error).__name__)
        else:
            self.progress.end("incomplete" if outcome(self.plan, self.layout).open else "finished")
        self.progress.close()

    def flush(self) -> None:
        """Wait until the tracking store has everything.

        Raises:
            TrackingError: it is away; what it lacks is kept, and logged by the next run.
        """
        if self.tracker.pending and not isinstance(self._display, Quiet):
            self.console.print("logging to MLflow …", highlight=False)
        if not self.tracker.flush(FLUSH_S):
            self.tracker.close(0)


@contextmanager
def _notes(listener: Broadcast) -> Iterator[None]:
    """Warnings of otkd's own loggers go to the person, not across the live display."""
    logger, handler = logging.getLogger("otkd"), NoteHandler(listener)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _mirror(url: str | None) -> Mirror:
    """The sweep's storage, if it has one, seen to be usable."""
    mirror = opened(url)
    if isinstance(mirror, Storage):
        mirror.probe()
    return mirror


def _level(plan: Plan, layout: Layout, mirror: Mirror) -> None:
    """Bring the storage and `runs/` to the same state."""
    from otkd.train.weights import place

    if isinstance(mirror, Storage):
        models = [Model(name=given.network, weights=given.digest) for given in plan.weights]
        weights = [place(layout, model, plan.spec.data.card) for model in models]
        mirror.reconcile([layout.trial(key) for key in Tried(plan, layout).whole.trials], weights)


def _runner(plan: Plan, layout: Layout, options: Options, mirror: Mirror) -> Runner:
    from otkd.train.device import pick
    from otkd.train.engine import Environment, fetch
    from otkd.train.weights import take_in

    environment = Environment(
        layout=layout,
        data_dir=options.data_dir,
        device=options.device,
        workers=plan.spec.resources.workers,
        compiled=plan.spec.resources.compile,
        heed_stop=True,
        deadline_s=None if plan.spec.resources.deadline_h is None else 3600 * plan.spec.resources.deadline_h,
        mirror=mirror,
    )
    fetch(plan.spec.data, environment)
    take_in(layout, plan.weights, plan.spec.data.card)
    _level(plan, layout, mirror)
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
