"""What is read from the tables is what MLflow's own calls give."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from otkd.core import names
from otkd.core.layout import Layout
from otkd.track import bulk, history
from otkd.track.mlflow import MlflowSink
from otkd.track.reader import read_sweep
from otkd.track.store import Store, connect

T0 = 1_700_000_100_000
ODD = (  # value, timestamp, step; in no order, several of one step, some at one time
    *((3.0, T0 + 5, 2), (math.nan, T0 + 1, 1), (math.inf, T0 + 9, 4), (-math.inf, T0 + 8, 3), (7.0, T0 + 9, 2)),
    *((2.5, T0 + 5, 2), (0.1 + 0.2, T0 + 30, 9), (-1.0, T0 + 40, 9), (5e-324, T0 + 2, 0), (math.nan, T0 + 50, 11)),
)


@pytest.fixture
def store(layout: Layout, invented: Any) -> Store:
    """The invented sweep, with odd values in two of its runs, beside runs that are not otkd's."""
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    store = connect(layout)
    for row in read_sweep(layout).trials[1:3]:
        for value, timestamp, step in ODD:
            store.client.log_metric(row.run_id, "odd", value, timestamp, step)
    for tags in ({}, {names.TAG_KEY: invented.trials[0].key}, {names.TAG_KEY: "", names.TAG_KIND: "student"}):
        run = store.client.create_run(store.experiment, tags=tags)
        store.client.log_metric(run.info.run_id, "odd", 1.0)
        store.client.log_param(run.info.run_id, "lr", 1)
    return store


def of_calls(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    """MLflow's history: of each step the value that was measured first, of several at one time the least."""
    found: dict[int, float] = {}
    points = store.client.get_metric_history(run_id, metric)
    for one in sorted(points, key=lambda one: (one.timestamp, one.step, one.value)):
        infinite = abs(one.value) > 1.79e308
        found.setdefault(one.step, math.copysign(math.inf, one.value) if infinite else one.value)
    return sorted(found.items())


@pytest.mark.parametrize("metric", ["odd", "train/loss", "val/top1", "no/such"])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_curves_are_those_of_mlflows_calls(
    store: Store, layout: Layout, metric: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "RUNS_PER_QUERY", 2)
    monkeypatch.setattr(bulk, "ROWS", 3)
    ids = [row.run_id for row in reversed(read_sweep(layout).trials)][-count - 1 : -1] if count < 6 else all_ids(layout)
    found = history.curves(store, ids, metric)
    wanted = [(run_id, *point) for run_id in ids for point in of_calls(store, run_id, metric)]
    np.testing.assert_array_equal([ids[place] for place in found.run], [run_id for run_id, *_ in wanted])
    np.testing.assert_array_equal(found.step, [step for _, step, _ in wanted])
    np.testing.assert_array_equal(found.value, [value for *_, value in wanted])
    if (metric, count) == ("odd", 6):
        assert len(found.step) == 2 * 7
        assert [found.value[found.step == step][0] for step in (2, 9)] == [2.5, 0.1 + 0.2]
        assert np.isnan(found.value[found.step == 11]).all()


def all_ids(layout: Layout) -> list[str]:
    return [row.run_id for row in read_sweep(layout).trials]


def test_runs_are_those_of_mlflows_search(store: Store, invented: Any) -> None:
    keys = [trial.key for trial in invented.trials]
    by_call = {run.id: run for run in bulk._of_calls(store) if run.tags.get(names.TAG_KEY) in keys}
    found = bulk.trial_runs(store, keys)
    assert {key: [run.tags[names.TAG_KEY] for run in runs] for key, runs in found.items()} == {
        key: [key] for key in keys
    }
    for runs in found.values():
        (run,) = runs
        other = by_call[run.id]
        assert run._replace(metrics={}) == other._replace(metrics={})
        np.testing.assert_equal(run.metrics, other.metrics)
    assert len(by_call) == len(keys), "runs without a kind are nobody's"


def test_deleted_runs_are_not_read(store: Store, layout: Layout, invented: Any) -> None:
    first = read_sweep(layout).trials[0]
    store.client.delete_run(first.run_id)
    assert read_sweep(layout).trials[0].status == "missing"
    assert first.label.key not in bulk.trial_runs(store, [first.label.key])


def test_the_newest_run_of_a_trial_comes_first(store: Store, invented: Any) -> None:
    key = invented.trials[0].key
    tags = {names.TAG_KEY: key, names.TAG_KIND: "teacher"}
    later = [store.client.create_run(store.experiment, start_time=T0 * 2 + n, tags=tags).info.run_id for n in (1, 0)]
    assert [run.id for run in bulk.trial_runs(store, [key])[key]][:2] == later


def test_another_experiment_is_not_read(store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert bulk.trial_runs(connect(layout), [row.label.key for row in ()]) == {}
    keys = [run.tags[names.TAG_KEY] for run in bulk._of_calls(store) if run.tags.get(names.TAG_KEY)]
    assert bulk.trial_runs(connect(layout), keys) == {}


def test_a_server_gives_the_same(store: Store, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tables both are asked for by MLflow's calls."""
    record, ids = read_sweep(layout), all_ids(layout)
    direct = history.curves(store, ids, "odd")
    monkeypatch.setattr(bulk, "database", lambda store: None)
    monkeypatch.setattr(history, "database", lambda store: None)
    called = history.curves(store, ids, "odd")
    for mine, other in zip(direct, called, strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_equal(read_sweep(layout)._asdict(), record._asdict())
