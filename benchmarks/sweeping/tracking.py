"""The tracker beside a bare writer: metric values a second into SQLite and PostgreSQL, and the driver's memory.

The bare writer calls MLflow's `log_batch` with 1,000 values at a time, for runs that are there already; nothing is
faster through MLflow. The tracker gets everything that a sweep says, as fast as it takes it: trials begin, their epochs
end, they end with a result; the journal is written beside, as in a sweep. `away`: the store answers nothing until the
last trial has ended.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.training.speed import shown
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, Label, SweepInfo, TrialResult
from otkd.core.trial import Data, Model, Train, Trial

TRIALS, QUICK_TRIALS = 2000, 40
EPOCHS, METRICS, FULL = 50, 12, 1000
POSTGRES = Path(__file__).resolve().parents[2] / "scripts" / "postgres"
PATIENCE_S = 600.0

LEGEND = """\
values/s: metric values of epochs, from the first trial's begin until the store has everything, the files of each trial
included. / bare: over the bare writer's of the same run. put ms: the longest that the driver waited for the tracker.
MiB: the driver's largest memory."""

TARGETS = (
    Target("the tracker reaches 60 % of a bare writer's values a second", "/ bare", 0.6),
    Target("a driver whose store is away takes less than 1 GiB", "MiB", 1024, most=True),
    Target("training does not wait for the tracker", "put ms", 100, most=True),
)


class Told(NamedTuple):
    """What one driver cost."""

    seconds: float
    put_ms: float
    mib: float


def measure(folder: Path, quick: bool = False) -> Iterator[Table]:
    """Both stores in turn, each driver in a process of its own."""
    trials = QUICK_TRIALS if quick else TRIALS
    with postgres(folder / "postgres") as server:
        for name, uri in (("SQLite", f"sqlite:///{folder / 'bare.db'}"), ("PostgreSQL", server)):
            yield shown(f"{trials} trials of {EPOCHS} epochs into {name}", compared(folder / name, uri, trials))


def compared(folder: Path, uri: str, trials: int) -> list[dict[str, Any]]:
    """A line for each writer."""
    values = trials * EPOCHS * METRICS
    floor = values / alone(bare, folder / "bare", uri, trials).seconds
    records: list[dict[str, Any]] = [{"writer": "bare", "values/s": floor}]
    for writer, away in (("tracker", False), ("tracker, store away", True)):
        told = alone(tracker, folder / writer, uri, trials, away)
        rate = {} if away else {"/ bare": values / told.seconds / floor}
        records.append({"writer": writer, "values/s": values / told.seconds, **rate, **figures(told)})
    columns = dict.fromkeys(column for record in records for column in record)
    return [{column: record.get(column) for column in columns} for record in records]


def figures(told: Told) -> dict[str, float]:
    return {"s": told.seconds, "put ms": told.put_ms, "MiB": told.mib}


def alone(work: Any, folder: Path, uri: str, *given: Any) -> Told:
    """Do it in a new process, with a database of its own where that is a file."""
    folder.mkdir(parents=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}" if uri.startswith("sqlite") else uri
    with (
        mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": str(folder)}),
        get_context("spawn").Pool(1) as pool,
    ):
        told: Told = pool.apply(work, (folder, *given))
    return told


def bare(folder: Path, trials: int) -> Told:
    """Full batches, into a run for each trial."""
    from mlflow.entities import Metric

    from otkd.track.store import connect

    store = connect(Layout(folder))
    batches = max(1, trials * EPOCHS * METRICS // FULL)
    runs = [store.client.create_run(store.experiment).info.run_id for _ in range(batches)]
    metrics = [Metric(f"m{index % METRICS}", index / 7, 1000 * index, index // METRICS) for index in range(FULL)]
    start = time.perf_counter()
    for run in runs:
        store.client.log_batch(run, metrics=metrics)
    seconds = (time.perf_counter() - start) * trials * EPOCHS * METRICS / (batches * FULL)
    return Told(seconds, 0.0, peak())


def tracker(folder: Path, trials: int, away: bool) -> Told:
    """A sweep's words, as fast as they are taken."""
    from otkd.sweep.journal import journal_file
    from otkd.track.jsonl import JsonlSink
    from otkd.track.mlflow import MlflowSink

    layout, planned = Layout(folder), [invented(seed) for seed in range(trials)]
    sweep = info(planned)
    journal, sink = JsonlSink(journal_file(layout, sweep.name)), MlflowSink(sweep, layout)
    longest, start = 0.0, time.perf_counter()
    with silent(sink, away):
        for trial in planned:
            longest = max(longest, said(journal, sink, trial))
    if not sink.flush(PATIENCE_S):
        raise RuntimeError("the tracker has stopped writing")
    seconds = time.perf_counter() - start
    sink.close()
    return Told(seconds, 1000 * longest, peak())


@contextmanager
def silent(sink: Any, away: bool) -> Iterator[None]:
    """A store that answers nothing."""
    if not away:
        yield
        return

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    client = sink.store.client
    with mock.patch.multiple(client, search_runs=refuse, create_run=refuse, get_experiment=refuse):
        yield


def said(journal: Any, sink: Any, trial: Trial) -> float:
    """Everything that one trial says; returns the longest that the tracker took for a word, in seconds."""
    key, now = trial.key, time.time()
    records = tuple(record(key, epoch, now) for epoch in range(1, EPOCHS + 1))
    result = TrialResult(key=key, status="finished", metrics={"m0": 1.0}, epochs=records, started=now, ended=now)
    longest = 0.0
    for word, given in (("start", trial), *(("epoch", one) for one in records), ("finish", result)):
        getattr(journal, word)(given)
        begin = time.perf_counter()
        getattr(sink, word)(given)
        longest = max(longest, time.perf_counter() - begin)
    return longest


def record(key: str, epoch: int, now: float) -> EpochRecord:
    metrics = {f"m{index}": epoch / (index + 1) for index in range(METRICS)}
    return EpochRecord(key=key, epoch=epoch, epochs=EPOCHS, metrics=metrics, time=now)


def invented(seed: int) -> Trial:
    objective = {"ce": {"weight": 1.0}, "kd": {"weight": 0.9}}
    student, train = Model(name="resnet8"), Train(epochs=EPOCHS)
    return Trial(data=Data(name="synthetic"), student=student, objective=objective, train=train, seed=seed)


def info(trials: list[Trial]) -> SweepInfo:
    labels = [
        Label(key=one.key, role="student", method="kd", pair="a ← b", student="a", teacher="b", seed=one.seed)
        for one in trials
    ]
    question = "How fast are records written?"
    return SweepInfo(
        name="records", key="0" * 16, question=question, profile="", yaml="", dataset="synthetic", labels=tuple(labels)
    )


def peak() -> float:
    """The largest memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server with its data in `folder`; gives the address of its database."""
    command = [sys.executable, str(POSTGRES), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            yield line.partition("=")[2].strip().strip("'")
        finally:
            server.send_signal(signal.SIGTERM)
