"""What runs cohorts, and how a worker's records travel to the driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from otkd.core.errors import TrialError
from otkd.core.layout import write_text
from otkd.core.records import EpochRecord, MetricSink, TrialResult
from otkd.core.trial import Trial

if TYPE_CHECKING:
    from otkd.train import Environment

HERE = "local"
"""In place of a cluster's address: on this machine alone."""
HOPELESS = ("ConfigError", "DataError", "DeadlineError", "WorkerLostError")
"""Errors that another attempt would meet again; the reason of a failure begins with the error's name."""


class WorkerLostError(TrialError):
    """A trial's workers were lost as often as may be."""


class Listener(MetricSink, Protocol):
    """A sink that also hears what a person should know."""

    def note(self, text: str) -> None:
        """A warning, or an event worth a line: a retry, a damaged checkpoint."""


class Runner(Protocol):
    """Trains cohorts. A trial whose cohort could not be trained is left undone; the next attempt takes it up."""

    def slots(self, cpu: float) -> int:
        """How many cohorts of so many CPU cores run at the same time."""

    def run(self, cohorts: Sequence[Sequence[Trial]], cpu: float, listener: Listener) -> None:
        """Train all of them, each with so many CPU cores."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: object) -> None: ...


Event = tuple[str, str]
"""What happened, and its record as JSON or text."""


class Mailbox:
    """A listener that collects events so that they can be sent elsewhere."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def start(self, trial: Trial) -> None:
        self._events.append(("start", trial.model_dump_json()))

    def epoch(self, record: EpochRecord) -> None:
        self._events.append(("epoch", record.model_dump_json()))

    def finish(self, result: TrialResult) -> None:
        self._events.append(("finish", result.model_dump_json()))

    def note(self, text: str) -> None:
        self._events.append(("note", text))

    def close(self) -> None:
        pass

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


def deliver(events: Iterable[Event], listener: Listener) -> None:
    """Pass events from a `Mailbox` on."""
    for kind, text in events:
        if kind == "note":
            listener.note(text)
        elif kind == "start":
            listener.start(Trial.model_validate_json(text))
        elif kind == "epoch":
            listener.epoch(EpochRecord.model_validate_json(text))
        else:
            listener.finish(TrialResult.model_validate_json(text))


def fail(trials: Iterable[Trial], error: Exception, environment: Environment, listener: MetricSink) -> None:
    """Tell that a cohort could not be trained: those of its trials that have not ended by themselves have failed.

    Raises:
        StorageError: the disk refuses.
    """
    now = time.time()
    for trial in trials:
        folder = environment.layout.trial(trial.key)
        if not (folder.done or folder.failed.exists()):
            reason = f"{type(error).__name__}: {error}"
            result = TrialResult(key=trial.key, status="failed", started=now, ended=now, reason=reason)
            write_text(folder.failed, result.model_dump_json(indent=1))
            environment.mirror.settle(folder)
            listener.finish(result)


def hopeless(failure: TrialResult) -> bool:
    """Whether another attempt would fail for the same reason."""
    return failure.reason.partition(":")[0] in HOPELESS


def threads(cpu: float, there: float) -> int:
    """CPU threads of a cohort that asks for `cpu` cores where `there` are."""
    return max(1, int(min(cpu, there)))


class NoteHandler(logging.Handler):
    """Passes the engine's warnings to a listener."""

    def __init__(self, listener: Any) -> None:
        super().__init__(logging.WARNING)
        self._listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        self._listener.note(record.getMessage())
