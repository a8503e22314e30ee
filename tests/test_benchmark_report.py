"""The benchmark of the report makes a sweep as the tracker does, and says what it has measured."""

from __future__ import annotations

import importlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from otkd.core.layout import Layout
from otkd.track.reader import read_sweep

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def benchmarks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, benchmarks: None) -> Layout:
    """A small sweep of the benchmark's."""
    store = importlib.import_module("benchmarks.reporting.store")
    made = Layout(tmp_path_factory.mktemp("store"))
    store.make(made, store.QUICK)
    return made


def test_the_sweep_is_read_as_one_of_the_trackers(layout: Layout) -> None:
    store = importlib.import_module("benchmarks.reporting.store")
    record = read_sweep(layout)
    students = [row for row in record.trials if row.label.role == "student"]
    assert len(students) == store.QUICK.trials == 30
    assert {row.status for row in record.trials} == {"finished"}, "so few lose none"
    for row in record.trials:
        assert len(row.metrics) == 12 + 19
        assert row.params["seed"] == str(row.label.seed)
        assert row.ended is not None
    with closing(sqlite3.connect(layout.database)) as database:
        (count,) = database.execute("SELECT count(*) FROM metrics").fetchone()
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert count == 32 * (12 * 12 + 19)
    assert {"index_metrics_run_uuid", "index_metrics_run_uuid_key_step"} <= names


def test_both_ways_of_reading_are_timed_on_the_same_values(layout: Layout) -> None:
    reading = importlib.import_module("benchmarks.reporting.reading")
    record = reading.both(layout.root, 5)
    assert (record["runs"], record["values"]) == ("5", str(5 * 12 * 12))
    assert record["MLflow / otkd"] == pytest.approx(record["MLflow s"] / record["otkd s"], rel=0.5)


@pytest.mark.long
def test_a_quick_run_says_what_it_has_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = importlib.import_module("benchmarks.report")
    for name in report.THREADS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("benchmarks.ot.HERE", tmp_path)
    report.main(["--quick", "--save"])
    (file,) = (tmp_path / "results").glob("report-*.json")
    tables = json.loads(file.read_text(encoding="utf-8"))["tables"]
    reports, views, read, targets = (table["records"] for table in tables)
    assert [record["report"] for record in reports] == ["first", "nothing new", "again"]
    assert reports[1]["nothing new s"] < reports[0]["first s"]
    assert read[0]["MLflow / otkd"] > 1
    assert len(views) == len(importlib.import_module("dashboards.page").VIEWS)
    assert all(0 < record["page s"] < record["first visitor s"] for record in views)
    assert len(targets) == 1 + 1 + 3 + len(views) + 1
