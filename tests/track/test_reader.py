"""What the report reads is what the sink wrote."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from otkd.core import names
from otkd.core.errors import OtkdError, TrackingError
from otkd.core.layout import Layout
from otkd.report.watch import is_away
from otkd.track.mlflow import MlflowSink
from otkd.track.reader import curves, read_sweep, sweeps
from otkd.track.store import connect


def test_a_sweep_comes_back_whole(layout: Layout, invented: Any, say: Any) -> None:
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    sweep = read_sweep(layout)
    assert sweep.info == invented.info
    assert sweep.run_id == sink.run_id
    assert [row.label for row in sweep.trials] == list(invented.info.labels)
    for row in sweep.trials:
        assert row.status == "finished"
        assert row.metrics["test/last/top1"] == say.result(row.label.key).metrics["test/last/top1"]
        assert row.params["seed"] == str(row.label.seed)
    losses = say.histories(layout, sweep, "train/loss")
    assert losses == {
        t.key: [(epoch, say.record(t.key, epoch).metrics["train/loss"]) for epoch in (1, 2, 3)] for t in invented.trials
    }
    assert say.histories(layout, sweep, "no/such") == {}


def test_every_state(layout: Layout, invented: Any, say: Any) -> None:
    sink = MlflowSink(invented.info, layout)
    done, lost, broken, running, stopped, _ = (t.key for t in invented.trials)
    inf = say.record(lost, 1).model_copy(update={"metrics": {"train/loss": -math.inf}})
    for t in invented.trials[:5]:
        sink.start(t)
    sink.finish(say.result(done))
    sink.finish(say.result(lost, "diverged", epochs=(inf,)))
    sink.finish(say.result(broken, "failed", epochs=()))
    sink.flush(20)
    sink._open = {stopped}
    sink.close()
    sweep = read_sweep(layout)
    states = ["finished", "diverged", "failed", "running", "missing", "missing"]
    assert [row.status for row in sweep.trials] == states
    assert say.histories(layout, sweep, "train/loss")[lost] == [(1, -math.inf)]
    assert sweep.trials[3].label.key == running
    assert sweep.trials[5].run_id == ""


def test_trials_of_an_earlier_sweep_count(layout: Layout, invented: Any) -> None:
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    labels = tuple(label.model_copy(update={"method": "x"}) for label in invented.info.labels[:3])
    later = invented.info.model_copy(update={"name": "later", "key": "0123", "profile": "", "labels": labels})
    MlflowSink(later, layout).close()
    sweep = read_sweep(layout)
    assert sweep.info.name == "later"
    assert [(row.status, row.label.method) for row in sweep.trials] == [("finished", "x")] * 3
    assert [name for _, name, _ in sweeps(layout)] == ["later", "toy-quick"]
    MlflowSink(invented.info, layout).close()
    assert [name for _, name, _ in sweeps(layout)] == ["toy-quick", "later"], "going on makes it the newest"
    assert read_sweep(layout, "toy").run_id == read_sweep(layout, "toy-quick").run_id == sink.run_id


def test_nothing_yet_and_no_such_name(layout: Layout, invented: Any) -> None:
    nothing = Layout(layout.root / "nothing")
    with pytest.raises(TrackingError, match="nothing is recorded"):
        sweeps(nothing)
    assert not nothing.root.exists(), "looking makes nothing"
    with pytest.raises(TrackingError, match="no experiment 'otkd'"):
        sweeps(layout)
    MlflowSink(invented.info, layout).close()
    with pytest.raises(OtkdError, match=r"no sweep 'toi-quick'; there is toy-quick\. Did you mean 'toy-quick'\?"):
        read_sweep(layout, "toi-quick")


def test_a_moved_folder_can_be_read(layout: Layout, invented: Any) -> None:
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    moved = layout.root.with_name("moved")
    shutil.copytree(layout.root, moved)
    shutil.rmtree(layout.root)
    assert [row.status for row in read_sweep(Layout(moved)).trials] == ["finished"] * 6


def test_importing_it_costs_little() -> None:
    code = "import otkd.track.reader, otkd.track.jsonl, sys; print({'torch', 'pandas', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def recorded(layout: Layout, invented: Any) -> Layout:
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    return layout


@pytest.mark.parametrize(("table", "fails"), [("metrics", "curves"), ("latest_metrics", "sweep"), ("tags", "sweep")])
def test_a_store_that_breaks_in_the_middle_is_named(recorded: Layout, table: str, fails: str) -> None:
    found = read_sweep(recorded)
    with closing(sqlite3.connect(recorded.database)) as database:
        database.execute(f"DROP TABLE {table}")
    with pytest.raises(TrackingError, match=rf"mlflow\.db refuses: .*no such table: {table}.*--runs"):
        curves(recorded, [found.trials[0].run_id], "lr") if fails == "curves" else read_sweep(recorded)


def test_runs_that_otkd_did_not_write_are_left_alone(recorded: Layout) -> None:
    before, store = read_sweep(recorded), connect(recorded)
    for tags in ({names.TAG_KIND: "sweep"}, {names.TAG_KIND: "sweep", names.TAG_SWEEP: ""}, {names.TAG_KEY: "?"}, {}):
        store.client.create_run(store.experiment, tags=tags)
    assert [name for _, name, _ in sweeps(recorded)] == ["toy-quick"]
    assert read_sweep(recorded)._asdict() == before._asdict()


@pytest.mark.parametrize("text", [None, "", "{}", '{"name": "toy", "labels": 3}'])
def test_a_plan_that_cannot_be_read_names_its_sweep(recorded: Layout, text: str | None) -> None:
    (plan,) = recorded.artifacts.glob("*/artifacts/plan.json")
    plan.unlink()
    if text is not None:
        plan.write_text(text)
    with pytest.raises(OtkdError, match=r"plan.json of toy-quick .*cannot be read \(.*`otkd report NAME`") as refused:
        read_sweep(recorded)
    assert is_away(refused.value) == (text is None), "`otkd report --watch` waits for what may come back alone"
