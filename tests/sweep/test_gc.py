"""`otkd gc` over folders made by hand: what it finds, what it leaves, what it asks. Truth: what each trial needs."""

import json
import os
import time

import pytest
from typer.testing import CliRunner

from otkd.cli import app
from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.records import Label, SweepInfo
from otkd.sweep import gc, lock

DONE, UNDER_WAY, PRUNED, FORGOTTEN, RETRIED = "done", "under-way", "pruned", "forgotten", "retried"


def label(key):
    about = {"pair": "resnet8 ← resnet14", "student": "resnet8", "teacher": "resnet14"}
    return Label(key=key, role="student", method="kd", seed=0, **about)


def info(*keys, name="one", dataset="digits"):
    said = {"question": "", "profile": "", "yaml": ""}
    return SweepInfo(name=name, key=f"key-of-{name}", dataset=dataset, labels=tuple(map(label, keys)), **said)


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def record(layout, sweep, *events):
    """A sweep's plan and journal; an event is a trial and what was last heard of it."""
    write(layout.records / f"{sweep.name}.plan.json", sweep.model_dump_json())
    journal(layout, sweep.name, *events)


def journal(layout, name, *events):
    lines = [
        {"event": "start", "key": key} if heard == "start" else {"event": "finish", "key": key, "status": heard}
        for key, heard in events
    ]
    write(layout.records / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "fin')


@pytest.fixture
def layout(tmp_path):
    """A `runs/` with a trial of each kind, each with two checkpoints; the first has ended."""
    layout = Layout(tmp_path / "runs")
    for key in (DONE, UNDER_WAY, PRUNED, FORGOTTEN, RETRIED):
        folder = layout.trial(key)
        write(folder.trial, json.dumps({"teacher": {"seed": 0}}))
        write(folder.checkpoint, "12345")
        write(folder.previous, "123")
    for path in (layout.trial(DONE).result, layout.trial(DONE).last, layout.trial(DONE).best):
        write(path)
    record(layout, info(DONE, UNDER_WAY, PRUNED), (DONE, "finished"), (UNDER_WAY, "start"), (PRUNED, "start"))
    record(layout, info(name="two"), (PRUNED, "start"), (PRUNED, "pruned"), (RETRIED, "failed"), (RETRIED, "start"))
    return layout


def found(layout, **options):
    return {
        waste.what: {str(path.relative_to(layout.root)) for path in waste.paths} for waste in gc.find(layout, **options)
    }


def checkpoints(*keys):
    return {f"trials/{key}/{name}" for key in keys for name in ("checkpoint.pt", "checkpoint.previous.pt")}


def test_checkpoints_that_nobody_needs_are_found(layout):
    journal(layout, "one", (UNDER_WAY, "start"))
    assert found(layout) == {
        "checkpoints of trials that have ended": checkpoints(DONE),
        "checkpoints of pruned trials": checkpoints(PRUNED),
        "checkpoints of trials that no recorded sweep names": checkpoints(FORGOTTEN, RETRIED),
    }
    assert sum(waste.bytes for waste in gc.find(layout)) == 4 * (5 + 3)


def test_a_pruned_trial_that_another_sweep_has_begun_is_kept(layout):
    assert "checkpoints of pruned trials" not in found(layout)


@pytest.mark.parametrize("has_failed", [True, False])
def test_a_pruned_trial_that_failed_since_is_kept(layout, has_failed):
    """`--retry-failed` goes on from its checkpoint. The journal may lack what `failed.json` says, and outlives that."""
    journal(layout, "one", (UNDER_WAY, "start"), *[(PRUNED, "failed")] * (not has_failed))
    if has_failed:
        write(layout.trial(PRUNED).failed)
    assert not checkpoints(PRUNED) & set().union(*found(layout).values())


def test_superseded_ones_may_stay(layout):
    kinds = found(layout, superseded=False)
    assert set().union(*kinds.values()) == checkpoints(DONE)


def test_trials_of_a_search_under_way_are_no_waste(layout):
    write(layout.root / "search" / "key-of-two.jsonl")
    assert found(layout)["checkpoints of trials that no recorded sweep names"] == checkpoints(FORGOTTEN)


def test_records_without_a_plan_count_in_full(layout):
    journal(layout, "old", (FORGOTTEN, "start"))
    write(layout.cache / "svhn" / "meta.json")
    kinds = found(layout)
    assert kinds["checkpoints of trials that no recorded sweep names"] == checkpoints(RETRIED)
    assert "images of data sets that no recorded sweep uses" not in kinds


def test_weights_go_only_on_demand_and_never_those_of_a_network_that_teaches(layout):
    for key, teacher in ((FORGOTTEN, {"seed": 0}), (RETRIED, None)):
        write(layout.trial(key).trial, json.dumps({"teacher": teacher}))
        write(layout.trial(key).result)
        write(layout.trial(key).last)
    kind = "weights of students that no recorded sweep names"
    assert kind not in found(layout)
    assert found(layout, weights=True)[kind] == {f"trials/{FORGOTTEN}/last.pt"}


def test_caches_ray_and_half_written_files(layout):
    for name in ("digits", "digits+0a1b", "svhn", "parquet%2Fpets", "folder%250123", "downloads"):
        write(layout.cache / name / "meta.json")
    write(layout.ray / "CohortTrainable_2026" / "trial" / "params.json")
    old, new = (write(layout.trial(UNDER_WAY).path / f".last.pt.{pid}.tmp") for pid in (1, 2))
    hours_ago = time.time() - 2 * gc.STALE_S
    os.utime(old, (hours_ago, hours_ago))
    kinds = found(layout)
    assert kinds["images of data sets that no recorded sweep uses"] == {"cache/svhn", "cache/parquet%2Fpets"}
    assert kinds["Ray's records of runs that are over"] == {"ray/CohortTrainable_2026"}
    assert kinds["files that a crash left half-written"] == {str(old.relative_to(layout.root))}
    assert new.exists()


def test_a_record_that_cannot_be_read_ends_it(layout):
    write(layout.records / "torn.plan.json", '{"name": "to')
    with pytest.raises(StorageError, match=r"torn\.plan\.json cannot be read, so nobody knows which trials it needs"):
        gc.find(layout)


def run(layout, *words, answer="\n"):
    return CliRunner().invoke(app, ["gc", "--runs", str(layout.root), *words], input=answer)


def files(layout):
    return {str(path.relative_to(layout.root)) for path in layout.root.rglob("*") if path.is_file()} - {".lock"}


def test_the_command_lists_and_does_nothing_unless_told(layout):
    before = files(layout)
    done = run(layout)
    assert done.exit_code == 0, done.output
    assert "checkpoints of trials that no recorded sweep names" in done.output
    assert files(layout) == before


def test_where_nobody_can_be_asked_the_command_says_how_to_go_on(layout):
    before = files(layout)
    done = run(layout, answer="")
    assert isinstance(done.exception, OtkdError)
    assert str(done.exception) == "nobody said yes, so nothing was removed; --yes removes without asking."
    assert files(layout) == before


@pytest.mark.parametrize(("words", "answer"), [((), "y\n"), (("--yes",), "")])
def test_the_command_removes_what_it_listed_and_nothing_else(layout, words, answer):
    write(layout.ray / "CohortTrainable_2026" / "params.json")
    before = files(layout)
    gone = checkpoints(DONE, FORGOTTEN, RETRIED) | {"ray/CohortTrainable_2026/params.json"}
    done = run(layout, *words, answer=answer)
    assert done.exit_code == 0, done.output
    assert files(layout) == before - gone
    assert "nothing" in run(layout).output


def test_nothing_is_touched_while_a_sweep_runs(layout):
    before, held = files(layout), lock.take(layout, "tiny")
    done = run(layout, "--yes")
    held.release()
    assert done.exit_code == 1
    assert "another sweep is running in" in str(done.exception)
    assert files(layout) == before


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    done = run(Layout(tmp_path / "none"))
    assert str(done.exception) == f"there is no folder {tmp_path / 'none'}; --runs names another."
    assert not (tmp_path / "none").exists()
