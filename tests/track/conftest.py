"""An invented sweep: two teachers, four students, records by a formula."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, Label, SweepInfo, TrialResult
from otkd.core.trial import Data, Model, Train, Trial
from otkd.track.reader import SweepRecord, curves

EPOCHS = 3
HOSTILE = "ot+kd <script>alert('é')</script>"
T0 = 1_700_000_000.0
POSTGRES = Path(__file__).parents[2] / "scripts" / "postgres"


def trial(name: str, seed: int, teacher: Trial | None = None, **terms: dict[str, Any]) -> Trial:
    objective = {"ce": {"weight": 1.0}, **terms}
    train = Train(epochs=EPOCHS, batch_size=13)
    return Trial(
        data=Data(name="toy"), student=Model(name=name), teacher=teacher, objective=objective, train=train, seed=seed
    )


def record(key: str, epoch: int, stage: str = "train") -> EpochRecord:
    value = int(key[:4], 16) / 65536 + epoch
    metrics = {"train/loss": value, "val/top1": value / 2, "lr": 0.1 / epoch}
    return EpochRecord(key=key, stage=stage, epoch=epoch, epochs=EPOCHS, metrics=metrics, time=T0 + 10 * epoch)


def result(key: str, status: str = "finished", **changes: Any) -> TrialResult:
    values: dict[str, Any] = {
        "key": key,
        "status": status,
        "metrics": {"test/last/top1": int(key[:4], 16) / 65536, "model/params": 137.0},
        "epochs": tuple(record(key, epoch) for epoch in range(1, EPOCHS + 1)),
        "provenance": {"commit": "abc123", "dirty": "false", "device": "cpu", "torch": "2.15.0"},
        "started": T0,
        "ended": T0 + 100,
        **changes,
    }
    return TrialResult(**values)


def histories(layout: Layout, sweep: SweepRecord, metric: str) -> dict[str, list[tuple[int, float]]]:
    """Trial key → (epoch, value) as they are read, for every trial that has the metric."""
    rows = [row for row in sweep.trials if metric in row.metrics]
    found: dict[str, list[tuple[int, float]]] = {row.label.key: [] for row in rows}
    columns = curves(layout, [row.run_id for row in rows], metric)
    for place, step, value in zip(*(column.tolist() for column in columns), strict=True):
        found[rows[place].label.key].append((step, value))
    return found


class Invented:
    """The sweep, its trials by name, and its labels."""

    def __init__(self) -> None:
        self.teachers = [trial("big", 0), trial("big", 1)]
        self.students: list[Trial] = []
        labels = [self._label(t, "teacher", "big", "") for t in self.teachers]
        for teacher in self.teachers:
            for method, terms in (("kd", {"kd": {"weight": 0.9}}), (HOSTILE, {"transport": {"weight": 10.0}})):
                student = trial("small", teacher.seed, teacher, **terms)
                self.students.append(student)
                labels.append(self._label(student, method, "small", "big"))
        self.trials = [*self.teachers, *self.students]
        self.info = SweepInfo(
            name="toy-quick",
            key="feedfeedfeedfeed",
            question="Which | loss is <best>?",
            profile="quick",
            yaml="name: toy\n",
            notes=("3 epochs each",),
            dataset="toy",
            labels=tuple(labels),
        )

    def _label(self, t: Trial, method: str, student: str, teacher: str) -> Label:
        pair = f"{student} ← {teacher}" if teacher else student
        role = "student" if teacher else "teacher"
        return Label(key=t.key, role=role, method=method, pair=pair, student=student, teacher=teacher, seed=t.seed)

    def play(self, sink: Any) -> None:
        """Everything that a sweep would say."""
        for t in self.trials:
            sink.start(t)
            for epoch in range(1, EPOCHS + 1):
                sink.epoch(record(t.key, epoch))
            sink.finish(result(t.key))


@pytest.fixture
def invented() -> Invented:
    return Invented()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them, to be copied: making one takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def layout(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    layout = Layout(tmp_path / "my runs")
    layout.root.mkdir()
    shutil.copy(database, layout.database)
    yield layout
    mlflow.set_tracking_uri(None)  # takes back what it has put into the environment


@pytest.fixture
def say() -> SimpleNamespace:
    """Makers of records, for tests that cannot import this file."""
    return SimpleNamespace(
        trial=trial, record=record, result=result, histories=histories, epochs=EPOCHS, hostile=HOSTILE, t0=T0
    )


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return int(s.getsockname()[1])

    return find


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL, as `make postgres` runs it; its address."""
    command = [sys.executable, str(POSTGRES), str(tmp_path_factory.mktemp("postgres") / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().removeprefix("export MLFLOW_TRACKING_URI=").strip().strip("'")
        finally:
            running.terminate()
            assert running.wait(30) == 0, "it ends in order"
