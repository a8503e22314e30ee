"""The sink against a real MLflow: what comes out of `mlflow.search_runs` is what went in."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import mlflow
import pytest

from otkd.core import names
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import Picture, Pictures
from otkd.track.events import Interrupted
from otkd.track.jsonl import JsonlSink
from otkd.track.mlflow import MlflowSink, note
from otkd.track.picture import heat_map
from otkd.track.reader import read_sweep
from otkd.track.store import tracking_uri


@pytest.fixture
def sink(invented: Any, layout: Layout) -> Any:
    sinks = []

    def make() -> MlflowSink:
        sinks.append(MlflowSink(invented.info, layout, pause=0.05))
        return sinks[-1]

    yield make
    for made in sinks:
        made._writer.stop(5)


def runs(layout: Layout, **options: Any) -> Any:
    mlflow.set_tracking_uri(tracking_uri(layout))
    return mlflow.search_runs(experiment_names=["otkd"], **options)


def by_key(layout: Layout) -> dict[str, Any]:
    found = [run for run in runs(layout, output_format="list") if run.data.tags.get(names.TAG_KEY)]
    assert len({run.data.tags[names.TAG_KEY] for run in found}) == len(found), "a trial has two runs"
    return {run.data.tags[names.TAG_KEY]: run for run in found}


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def test_a_sweep_is_in_mlflow_as_it_was_said(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    writer = sink()
    invented.play(writer)
    writer.close()

    frame = runs(layout)
    trials = frame[frame[f"tags.{names.TAG_KIND}"] != "sweep"].set_index(f"tags.{names.TAG_KEY}")
    assert set(trials.index) == {t.key for t in invented.trials}
    assert len(trials) == 6
    assert set(frame["status"]) == {"FINISHED"}
    for label, t in zip(invented.info.labels, invented.trials, strict=True):
        row = trials.loc[t.key]
        assert row["tags.mlflow.runName"] == label.title
        assert row["tags.mlflow.parentRunId"] == writer.run_id
        assert row[f"tags.{names.TAG_METHOD}"] == label.method
        assert row[f"tags.{names.TAG_COHORT}"] == t.cohort
        assert row[f"tags.{names.TAG_PROVENANCE}commit"] == row["tags.mlflow.source.git.commit"] == "abc123"
        assert row["params.train.optimizer.lr"] == "0.05"
        assert row["metrics.test/last/top1"] == say.result(t.key).metrics["test/last/top1"]
        assert row["end_time"].timestamp() == say.t0 + 100
    student = trials.loc[invented.students[0].key]
    assert student["params.teacher.student.name"] == "big"
    assert student["params.objective.kd.weight"] == "0.9"


def test_test_figures_of_a_candidate_stand_apart(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    """Where the pages compare trials, in notes and in the registry, there are none; the report gets them all."""
    student, compared = invented.students[:2]
    staged = [
        one.model_copy(update={"stage": "search"} if one.key == student.key else {}) for one in invented.info.labels
    ]
    invented.info = invented.info.model_copy(update={"labels": tuple(staged)})
    writer = sink()
    invented.play(writer)
    writer.close()
    found = by_key(layout)
    name, figure = names.test("last", "top1"), say.result(student.key).metrics[names.test("last", "top1")]
    assert name in found[compared.key].data.metrics
    assert name not in found[student.key].data.metrics
    assert found[student.key].data.metrics[f"search/{name}"] == figure
    assert "test top-1" not in found[student.key].data.tags["mlflow.note.content"]
    assert "test top-1" in found[compared.key].data.tags["mlflow.note.content"]
    [row] = [row for row in read_sweep(layout).trials if row.label.key == student.key]
    assert row.metrics[name] == figure


def test_epochs_datasets_and_artifacts(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    writer = sink()
    invented.play(writer)
    writer.close()
    for t in invented.trials:
        run = by_key(layout)[t.key]
        for name in ("train/loss", "val/top1", "lr"):
            expected = [(epoch, say.record(t.key, epoch).metrics[name]) for epoch in range(1, say.epochs + 1)]
            assert history(run, name) == expected
        point = mlflow.MlflowClient().get_metric_history(run.info.run_id, "lr")[0]
        assert point.timestamp == 1000 * say.record(t.key, point.step).time
        used = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
        assert set(used) == {"training", "test"}, "there is no validation split"
        assert {(dataset.name, len(dataset.digest)) for dataset in used.values()} == {("toy", 16)}
        kept = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/result.json")
        assert type(say.result(t.key)).model_validate_json(kept) == say.result(t.key)
    parent = mlflow.MlflowClient().get_run(writer.run_id)
    assert json.loads(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/plan.json"))["key"] == invented.info.key
    assert mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/sweep.yaml") == invented.info.yaml
    assert parent.info.artifact_uri.startswith(layout.artifacts.resolve().as_uri())
    assert invented.info.question in parent.data.tags["mlflow.note.content"]


def test_a_kept_plan_becomes_a_picture_of_the_run(sink: Any, invented: Any, layout: Layout) -> None:
    student = invented.students[0]
    between = Picture(about="plan between images, ordered by class", matrix=((0.5, 0.0), (0.1, 0.4)), classes=(0, 3))
    cells = Picture(about="mean plan between the cells of an image", matrix=((0.2, 0.3, 0.5),))
    text = Pictures(pictures={"transport-stage2/x": cells, "transport-embedding": between}).model_dump_json()
    layout.trial(student.key).snapshots.parent.mkdir(parents=True)
    layout.trial(student.key).snapshots.write_text(text)
    writer = sink()
    invented.play(writer)
    writer.close()
    run = by_key(layout)[student.key]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/snapshots.json") == text
    for name in ("transport-stage2-x", "transport-embedding"):
        image = mlflow.artifacts.load_image(f"{run.info.artifact_uri}/{name}.png")
        assert min(image.size) > 300
    other = by_key(layout)[invented.students[1].key]
    assert "snapshots.json" not in [item.path for item in mlflow.MlflowClient().list_artifacts(other.info.run_id)]


def test_a_heat_map_shows_the_matrix_and_names_the_classes() -> None:
    matrix = ((0.5, 0.0, 0.1), (0.1, 0.4, 0.2), (0.0, 0.3, 0.6))
    axes = heat_map(Picture(about="between images", matrix=matrix, classes=(0, 3, 3))).axes[0]
    (image,) = axes.images
    assert image.get_array().tolist() == [list(row) for row in matrix]
    assert image.get_clim() == (0, 0.6)
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["0", "3"]
        assert axis.get_ticklocs().tolist() == [0, 1.5]
    assert [line.get_ydata()[0] for line in axes.lines[::2]] == [0.5], "one line parts the classes"
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "between images", "teacher, by class", "student, by class"
    )  # fmt: skip


def test_a_heat_map_of_no_classes_says_how_many_there_are() -> None:
    axes = heat_map(Picture(about="between cells", matrix=((0.2, 0.3, 0.5), (0.1, 0.0, 0.2)))).axes[0]
    assert axes.images[0].get_array().shape == (2, 3)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("teacher (3)", "student (2)")


@pytest.mark.parametrize("text", ['{"pictures": {"transport-emb', '{"pictures": {"x": {"about": "", "matrix": []}}}'])
def test_a_torn_picture_leaves_no_run_open(
    sink: Any, invented: Any, layout: Layout, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    student = invented.students[0]
    layout.trial(student.key).snapshots.parent.mkdir(parents=True)
    layout.trial(student.key).snapshots.write_text(text)
    writer = sink()
    with caplog.at_level(logging.WARNING, "otkd.track"):
        invented.play(writer)
        writer.close()
    assert f"the pictures of {student.key} cannot be drawn" in caplog.text
    assert {run.info.status for run in by_key(layout).values()} == {"FINISHED"}


def test_a_killed_driver_is_continued(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    first, trial = sink(), invented.students[0]
    first.start(trial)
    first.epoch(say.record(trial.key, 1))
    first.epoch(say.record(trial.key, 2))
    assert first.flush(10)  # and then the driver is gone: no close
    assert by_key(layout)[trial.key].info.status == "RUNNING"

    second = sink()
    second.start(trial)
    again = say.record(trial.key, 2).model_copy(update={"time": say.t0 + 999})  # repeated after a resume, later
    second.epoch(again)
    second.finish(say.result(trial.key))
    second.close()

    assert second.run_id == first.run_id
    run = by_key(layout)[trial.key]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(run, "train/loss")] == [1, 2, 3]
    assert mlflow.get_run(second.run_id).info.status == "KILLED", "five trials of the plan are missing"


def test_an_interrupted_trial_is_marked_and_goes_on(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    first, trial = sink(), invented.teachers[0]
    first.start(trial)
    first.epoch(say.record(trial.key, 1))
    first.close()
    assert by_key(layout)[trial.key].info.status == "KILLED"
    second = sink()
    second.start(trial)
    assert second.flush(10)
    assert by_key(layout)[trial.key].info.status == "RUNNING"
    second.finish(say.result(trial.key))
    second.close()
    assert [step for step, _ in history(by_key(layout)[trial.key], "lr")] == [1, 2, 3]


def test_replay_changes_nothing(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    first = sink()
    invented.play(first)
    first.close()
    before = {key: run.to_dictionary() for key, run in by_key(layout).items()}
    second = sink()
    invented.play(second)
    for t in invented.trials:
        second.finish(say.result(t.key, metrics={"test/last/top1": 0.0}))
    assert second.finished() == {t.key for t in invented.trials}
    second.close()
    assert {key: run.to_dictionary() for key, run in by_key(layout).items()} == before


def test_a_result_alone_is_enough(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial = invented.students[1]
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True)
    folder.trial.write_text(trial.model_dump_json())
    writer = sink()
    writer.finish(say.result(trial.key))
    writer.close()
    run = by_key(layout)[trial.key]
    assert len(history(run, "val/top1")) == say.epochs
    assert run.data.params["student.name"] == "small"
    assert run.info.start_time == 1000 * say.t0


def test_divergence_failure_and_numbers_that_are_not(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    lost, broken, _, _ = invented.students
    nan = say.record(lost.key, 1).model_copy(update={"metrics": {"train/loss": math.nan, "val/loss": math.inf}})
    writer = sink()
    for t in (lost, broken):
        writer.start(t)
    writer.epoch(nan)
    writer.finish(
        say.result(lost.key, "diverged", epochs=(nan,), reason="loss is NaN", metrics={"test/last/loss": math.nan})
    )
    writer.finish(say.result(broken.key, "failed", epochs=(), reason="out of memory", metrics={}))
    writer.close()
    runs = by_key(layout)
    assert [runs[t.key].info.status for t in (lost, broken)] == ["FAILED", "FAILED"]
    assert [runs[t.key].data.tags[names.TAG_STATUS] for t in (lost, broken)] == ["diverged", "failed"]
    assert runs[lost.key].data.tags[names.TAG_REASON] == "loss is NaN"
    assert math.isnan(runs[lost.key].data.metrics["train/loss"])

    again = sink()
    again.finish(say.result(lost.key))  # stays diverged
    again.start(broken)
    again.finish(say.result(broken.key))
    again.close()
    runs = by_key(layout)
    assert [runs[t.key].data.tags[names.TAG_STATUS] for t in (lost, broken)] == ["diverged", "finished"]


def test_a_retry_leaves_nothing_of_the_failure(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial = invented.students[0]
    writer = sink()
    writer.start(trial)
    writer.epoch(say.record(trial.key, 1))
    writer.finish(say.result(trial.key, "failed", epochs=(say.record(trial.key, 1),), reason="out of memory"))
    assert writer.flush(10)
    assert by_key(layout)[trial.key].info.status == "FAILED"
    assert by_key(layout)[trial.key].data.tags[names.TAG_REASON] == "out of memory"

    writer.start(trial)
    assert writer.flush(10)
    retried = by_key(layout)[trial.key]
    assert (retried.info.status, retried.data.tags[names.TAG_STATUS]) == ("RUNNING", "running")
    assert not retried.data.tags.get(names.TAG_REASON)

    writer.finish(say.result(trial.key))
    writer.close()
    ended = by_key(layout)[trial.key]
    assert (ended.info.status, ended.data.tags[names.TAG_STATUS]) == ("FINISHED", "finished")
    assert not ended.data.tags.get(names.TAG_REASON)
    assert [step for step, _ in history(ended, "train/loss")] == [1, 2, 3], "no epoch twice"


def test_a_result_half_written_by_a_killed_driver_is_taken_back(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    trial = invented.students[0]
    first = sink()
    monkeypatch.setattr(first.store.client, "set_terminated", lambda *_, **__: None)  # killed just before
    first.start(trial)
    first.finish(say.result(trial.key, "failed", epochs=(), reason="out of memory"))
    assert first.flush(10)
    assert by_key(layout)[trial.key].info.status == "RUNNING"
    second = sink()
    second.start(trial)
    assert second.flush(10)
    tags = by_key(layout)[trial.key].data.tags
    assert (tags[names.TAG_STATUS], tags.get(names.TAG_REASON)) == ("running", "")


def test_stages_keep_their_name(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial = invented.students[0]
    writer = sink()
    writer.start(trial)
    writer.epoch(say.record(trial.key, 1, stage="hint"))
    writer.epoch(say.record(trial.key, 1))
    writer.flush(10)
    run = by_key(layout)[trial.key]
    assert history(run, "hint/train/loss") == history(run, "train/loss")


def test_report_and_note(sink: Any, invented: Any, layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("# x")
    writer = sink()
    writer.attach_report(tmp_path / "out", "| method | top-1 |\n|---|---|\n| kd | 71 |")
    writer.close()
    mlflow.set_tracking_uri(tracking_uri(layout))
    parent = mlflow.get_run(writer.run_id)
    assert parent.info.status == "FINISHED"
    assert "| kd | 71 |" in parent.data.tags["mlflow.note.content"]
    assert mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/report/report.md") == "# x"


def test_a_long_table_is_cut_between_lines(invented: Any) -> None:
    text = note(invented.info, "| a | b |\n" * 2000)
    assert len(text) <= 8000
    assert text.splitlines()[-3] == "| a | b |"
    assert "artifact `report`" in text


def test_a_fault_in_one_trial_spares_the_others(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    bad, good = invented.students[:2]
    writer = sink()
    client = writer.store.client
    log_batch, figure = client.log_batch, say.result(bad.key).metrics["test/last/top1"]

    def refuse(run_id: str, metrics: Any, **more: Any) -> None:
        if figure in [metric.value for metric in metrics]:
            raise ValueError("no room for this one")
        log_batch(run_id, metrics, **more)

    monkeypatch.setattr(client, "log_batch", refuse)
    for t in (bad, good):
        writer.start(t)
        writer.finish(say.result(t.key))
    with pytest.raises(TrackingError, match=r"kd · seed 0 .*no room for this one"):
        writer.close()
    writer.close()  # once is enough
    assert by_key(layout)[good.key].info.status == "FINISHED"
    assert mlflow.get_run(writer.run_id).info.status == "KILLED", "nobody works on the sweep any more"


def test_an_outage_delays_and_loses_nothing(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    writer = sink()
    client, calls = writer.store.client, []

    def away(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise ConnectionError("nobody there")

    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "otkd.track"):
        with monkeypatch.context() as outage:
            outage.setattr(client, "log_batch", away)
            outage.setattr(client, "get_experiment", away)
            invented.play(writer)
            assert time.monotonic() - began < 0.2, "training waits for tracking"
            deadline = time.monotonic() + 20
            while not caplog.records and time.monotonic() < deadline:  # until the writer has met the outage
                time.sleep(0.01)
            assert not writer.flush(0.1)
            assert len(writer.pending) == 6
        assert writer.flush(20)
    writer.close()
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        "the tracking store does not answer",
        "the tracking store answers again",
    ]
    kept = {key: len(history(run, "lr")) for key, run in by_key(layout).items()}
    assert kept == dict.fromkeys(kept, say.epochs)


def test_what_could_not_be_logged_is_counted(sink: Any, invented: Any, monkeypatch: Any) -> None:
    writer = sink()

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    for method in ("create_run", "search_runs", "get_experiment"):
        monkeypatch.setattr(writer.store.client, method, away)
    invented.play(writer)
    with pytest.raises(TrackingError, match=r"6 trials' records .* next run of the same command"):
        writer.close(timeout=0.3)


def journaled(layout: Layout, invented: Any) -> JsonlSink:
    return JsonlSink(layout.records / f"{invented.info.name}.jsonl")


def test_what_has_no_room_is_read_back(invented: Any, layout: Layout, say: Any, monkeypatch: Any) -> None:
    journal, writer = journaled(layout, invented), MlflowSink(invented.info, layout, pause=0.05, room=4)
    *ended, running = invented.trials

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    with monkeypatch.context() as outage:
        for method in ("create_run", "get_experiment"):
            outage.setattr(writer.store.client, method, away)
        for t in (*ended, running):
            for sink in (journal, writer):
                sink.start(t)
                for epoch in range(1, say.epochs + 1):
                    sink.epoch(say.record(t.key, epoch))
                if t is not running:
                    sink.finish(say.result(t.key))
        assert writer._writer._now.values <= 4, "epochs that files have stay out of memory"
    assert writer.flush(30)
    found = by_key(layout)
    for t in invented.trials:
        assert [step for step, _ in history(found[t.key], "lr")] == [1, 2, 3]
    kept = mlflow.artifacts.load_text(f"{found[ended[0].key].info.artifact_uri}/result.json")
    assert len(json.loads(kept)["epochs"]) == 3
    writer.close()


def test_a_damaged_result_gives_way_to_the_journal(invented: Any, layout: Layout, say: Any) -> None:
    journal, writer = journaled(layout, invented), MlflowSink(invented.info, layout, pause=0.05, room=0)
    trial = invented.teachers[0]
    layout.trial(trial.key).path.mkdir(parents=True)
    layout.trial(trial.key).result.write_text('{"key": "' + trial.key)
    layout.trial(trial.key).trial.write_text("{")
    for sink in (journal, writer):
        for epoch in range(1, say.epochs + 1):
            sink.epoch(say.record(trial.key, epoch))
        sink.finish(say.result(trial.key))
    writer.close()
    run = by_key(layout)[trial.key]
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(run, "lr")] == [1, 2, 3]


def test_damaged_lines_of_the_journal_stop_nothing(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    broken, whole = invented.students[:2]
    journal = journaled(layout, invented)
    with journal.path.open("a") as file:
        file.write(f'{{"event": "epoch", "key": "{broken.key}", "epoch": "one"}}\n')
    journaled(layout, invented).epoch(say.record(whole.key, 1))
    writer = sink()
    writer.close()
    assert {*by_key(layout)} == {whole.key}


def test_a_store_that_dies_while_it_makes_a_run_makes_one(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    """A run that was made without an answer is found again: `by_key` refuses two."""
    trial, writer = invented.students[0], sink()
    create_run, made = writer.store.client.create_run, []

    def mute(*given: Any, **named: Any) -> Any:
        made.append(create_run(*given, **named))
        raise ConnectionError("gone before it could answer")

    monkeypatch.setattr(writer.store.client, "create_run", mute)
    writer.start(trial)
    writer.finish(say.result(trial.key))
    writer.close()
    assert [run.info.run_id for run in made] == [by_key(layout)[trial.key].info.run_id]
    assert [step for step, _ in history(by_key(layout)[trial.key], "lr")] == [1, 2, 3]


def test_of_several_runs_of_a_trial_one_that_ended_counts(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    """Two drivers with `runs/` of their own, and one store: here what the second finds, newest first."""
    store, trial = sink().store, invented.students[0]
    client = store.client
    ends = (("KILLED", "interrupted"), ("FINISHED", "finished"), ("KILLED", "interrupted"))
    for start, (status, state) in enumerate(ends):
        tags = {names.TAG_KEY: trial.key, names.TAG_KIND: "student", names.TAG_STATUS: state}
        run = client.create_run(store.experiment, 1000 + start, tags)
        client.set_terminated(run.info.run_id, status, 2000)
    second = sink()
    assert second.finished() == {trial.key}
    second.start(trial)
    second.epoch(say.record(trial.key, 1))
    second.close()
    found = [run for run in runs(layout, output_format="list") if run.data.tags.get(names.TAG_KEY) == trial.key]
    assert [run.data.tags[names.TAG_STATUS] for run in found] == [state for _, state in ends]
    assert not any(run.data.metrics for run in found)


def test_a_whole_trial_takes_few_calls(sink: Any, invented: Any, say: Any, monkeypatch: Any) -> None:
    """Each is a transaction or several: twice as many, and the tracker is half as fast."""
    writer, calls = sink(), []
    assert writer.flush(20)
    for name in ("search_runs", "get_run", "create_run", "log_batch", "set_tag", "log_inputs", "set_terminated"):
        method = getattr(writer.store.client, name)
        monkeypatch.setattr(
            writer.store.client,
            name,
            lambda *a, name=name, method=method, **k: (calls.append(name), method(*a, **k))[1],
        )
    teacher = invented.teachers[0]
    with writer._writer._changed:  # all of it at once, as after an outage
        writer.start(teacher)
        for epoch in (1, 2, 3):
            writer.epoch(say.record(teacher.key, epoch))
        writer.finish(say.result(teacher.key))
    assert writer.flush(20)
    assert calls[-2:] == ["log_inputs", "set_terminated"]
    assert sorted(calls[:-2]) == ["create_run", "get_run", "log_batch"], (
        "get_run: the sweep's name, once for all trials"
    )


def test_a_start_logs_what_the_journal_has_of_trials_cut_short(
    sink: Any, invented: Any, layout: Layout, say: Any
) -> None:
    known, unknown = invented.students[:2]
    first, journal = sink(), journaled(layout, invented)
    first.start(known)
    first.epoch(say.record(known.key, 1))
    assert first.flush(20)  # and then the store is away, and the driver is killed
    for t in (known, unknown):
        for epoch in (1, 2):
            journal.epoch(say.record(t.key, epoch))
    second = sink()
    assert second.flush(20)
    for t in (known, unknown):
        run = by_key(layout)[t.key]
        assert [step for step, _ in history(run, "train/loss")] == [1, 2]
        assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("KILLED", "interrupted")
        assert run.info.end_time == 1000 * say.record(t.key, 2).time, "it ended when it was last heard of"
    second.start(known)
    second.finish(say.result(known.key))
    second.close()
    assert [step for step, _ in history(by_key(layout)[known.key], "train/loss")] == [1, 2, 3]


def test_runs_of_a_killed_driver_end_and_those_of_others_stay(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    mine, theirs = invented.students[:2]
    other = invented.info.model_copy(update={"name": "other", "key": "0123"})
    with monkeypatch.context() as shared:
        shared.setattr("otkd.track.runs.own", lambda *_: False)  # a store that others use as well
        first, elsewhere = sink(), MlflowSink(other, layout)
        first.start(mine)
        elsewhere.start(theirs)
        assert first.flush(20)
        assert elsewhere.flush(20)
        assert sink().flush(20)
    found = by_key(layout)
    assert [found[t.key].info.status for t in (mine, theirs)] == ["KILLED", "RUNNING"]
    assert mlflow.get_run(elsewhere.run_id).info.status == "RUNNING"
    assert sink().flush(20)  # the store of one `runs/`, whose lock is ours
    assert by_key(layout)[theirs.key].info.status == "KILLED"
    assert mlflow.get_run(elsewhere.run_id).info.status == "KILLED"
    elsewhere._writer.stop(5)


def test_a_divergence_that_is_tried_again_gets_a_run_of_its_own(
    sink: Any, invented: Any, layout: Layout, say: Any
) -> None:
    trial, lost = invented.students[0], say.record(invented.students[0].key, 1)
    lost = lost.model_copy(update={"metrics": {"train/loss": 1e9}})
    diverged = say.result(trial.key, "diverged", epochs=(lost,), reason="loss is NaN")
    first = sink()
    first.start(trial)
    first.finish(diverged)
    first.close()
    old = by_key(layout)[trial.key]
    folder = layout.trial(trial.key)
    folder.path.mkdir(parents=True)
    folder.set_aside.write_text(diverged.model_dump_json())
    second = sink()
    assert second.finished() == set()
    second.start(trial)
    assert second.flush(20)
    run = by_key(layout)[trial.key]
    assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("RUNNING", "running")
    second.finish(say.result(trial.key))
    second.close()
    run = by_key(layout)[trial.key]
    assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("FINISHED", "finished")
    assert history(run, "train/loss") == [(e, say.record(trial.key, e).metrics["train/loss"]) for e in (1, 2, 3)]
    kept = mlflow.get_run(old.info.run_id)
    assert (kept.info.status, kept.data.tags[names.TAG_SUPERSEDED]) == ("FAILED", trial.key), "for people to read"
    assert history(kept, "train/loss") == [(1, 1e9)]
    [row] = [row for row in read_sweep(layout).trials if row.label.key == trial.key]
    assert (row.run_id, row.status) == (run.info.run_id, "finished")
    assert sink().finished() == {trial.key}


@pytest.mark.parametrize("cut", ["files", "end", "end, and again before it was begun"])
def test_a_divergence_whose_run_was_not_ended_gets_a_run_of_its_own(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any, cut: str
) -> None:
    """Its driver could not write its files, or was killed just before it would have ended the run."""
    trial, diverged, first = invented.students[0], say.result(invented.students[0].key, "diverged"), sink()
    step = "_keep" if cut == "files" else "_end"
    monkeypatch.setattr(first._runs, step, Mock(side_effect=PermissionError("no")))
    first.start(trial)
    first.finish(diverged)
    assert first.flush(20)
    first._writer.stop(2)
    old = by_key(layout)[trial.key]
    assert (old.info.status, old.data.tags[names.TAG_STATUS]) == ("FAILED" if cut == "files" else "RUNNING", "diverged")
    layout.trial(trial.key).path.mkdir(parents=True, exist_ok=True)
    layout.trial(trial.key).set_aside.write_text(diverged.model_dump_json())
    if "again" in cut:
        between = sink()
        assert between.flush(20)
        between._writer.stop(5)
    second = sink()
    second.start(trial)
    second.finish(say.result(trial.key))
    second.close()
    run = by_key(layout)[trial.key]
    assert run.info.run_id != old.info.run_id
    assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("FINISHED", "finished")
    assert mlflow.get_run(old.info.run_id).data.tags[names.TAG_SUPERSEDED] == trial.key


def test_a_store_that_dies_while_a_divergence_gets_a_new_run_makes_one(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    trial, first = invented.students[0], sink()
    first.finish(say.result(trial.key, "diverged"))
    first.close()
    layout.trial(trial.key).path.mkdir(parents=True)
    layout.trial(trial.key).set_aside.write_text(say.result(trial.key, "diverged").model_dump_json())
    second, calls = sink(), []
    for method in ("log_batch", "create_run"):
        do = getattr(second.store.client, method)

        def mute(*given: Any, method: str = method, do: Any = do, **named: Any) -> Any:
            done = do(*given, **named)
            if method not in calls:
                calls.append(method)
                raise ConnectionError("gone before it could answer")
            return done

        monkeypatch.setattr(second.store.client, method, mute)
    second.finish(say.result(trial.key))
    second.close()
    assert calls == ["log_batch", "create_run"]
    assert by_key(layout)[trial.key].info.status == "FINISHED"


def test_a_trial_that_diverges_again_is_known_to_have_ended(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial, first = invented.students[0], say.result(invented.students[0].key, "diverged", reason="loss is NaN")
    for attempt in range(2):
        writer = sink()
        writer.start(trial)
        writer.finish(first.model_copy(update={"ended": first.ended + attempt}))
        writer.close()
        layout.trial(trial.key).path.mkdir(parents=True, exist_ok=True)
        layout.trial(trial.key).set_aside.write_text(first.model_dump_json())  # what was tried again is the first
    assert by_key(layout)[trial.key].info.status == "FAILED"
    assert sink().finished() == {trial.key}


def test_a_pruned_trial_ends_and_may_go_on(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial, first = invented.students[0], sink()
    first.start(trial)
    first.finish(say.result(trial.key, "pruned", epochs=(say.record(trial.key, 1),), reason="stopped by asha"))
    first.close()
    run = by_key(layout)[trial.key]
    assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("FINISHED", "pruned")
    assert read_sweep(layout).trials[2].status == "pruned"
    second = sink()
    assert second.finished() == set(), "it may be gone on with"
    second.start(trial)
    second.finish(say.result(trial.key))
    second.close()
    run = by_key(layout)[trial.key]
    assert (run.data.tags[names.TAG_STATUS], run.data.tags[names.TAG_REASON]) == ("finished", "")
    assert [step for step, _ in history(run, "train/loss")] == [1, 2, 3]


def test_a_sweep_that_grows_is_told_of_its_trials(sink: Any, invented: Any, layout: Layout) -> None:
    whole, writer = invented.info, sink()
    writer.describe(whole.model_copy(update={"labels": whole.labels[:2]}))
    for count in range(3, len(whole.labels) + 1):
        writer.describe(whole.model_copy(update={"labels": whole.labels[:count]}))
    assert not writer._writer._done > 1, "not at every one"
    assert writer.flush(20)
    assert read_sweep(layout).info == whole


def test_files_that_cannot_be_written_are_told_with_the_way_out(
    sink: Any, invented: Any, layout: Layout, say: Any
) -> None:
    trial, writer = invented.students[0], sink()
    assert writer.flush(20)
    real = layout.artifacts
    kept = real.with_name("kept")
    real.rename(kept)
    real.write_text("no folder")
    writer.start(trial)
    writer.finish(say.result(trial.key))
    with pytest.raises(TrackingError, match=r"figures are logged, but its files cannot be written .* same command"):
        writer.close()
    real.unlink()
    kept.rename(real)
    run = by_key(layout)[trial.key]
    assert (run.info.status, run.data.tags[names.TAG_STATUS]) == ("FINISHED", "finished"), "the tables have it"
    assert run.data.tags[names.TAG_FILES] == "missing"
    again = sink()
    assert again.finished() == set()
    again.start(trial)
    again.finish(say.result(trial.key))
    again.close()
    run = by_key(layout)[trial.key]
    assert (run.info.status, run.data.tags[names.TAG_FILES]) == ("FINISHED", "")
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)]
    assert sink().finished() == {trial.key}


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_files_are_tried_again_by_the_same_sweep(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any, status: str
) -> None:
    trial, writer = invented.students[0], sink()

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as refused:
        refused.setattr("otkd.track.runs.repository", refuse)
        writer.start(trial)
        writer.finish(say.result(trial.key, status))
        assert writer.flush(20)
        ended = by_key(layout)[trial.key]
        assert ended.data.tags[names.TAG_STATUS] == status
        assert ended.info.status != "RUNNING", "a report that is made now has its figures"
        writer._writer.put(Interrupted(trial.key))
        assert writer.flush(20)
        assert by_key(layout)[trial.key].data.tags[names.TAG_STATUS] == status
    writer.start(trial)
    writer.finish(say.result(trial.key, status))
    writer.close()
    run = by_key(layout)[trial.key]
    assert (run.data.tags[names.TAG_STATUS], run.data.tags[names.TAG_FILES]) == (status, "")
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/result.json")


@pytest.mark.parametrize("other", ["", "another sweep"])
def test_what_others_have_in_training_is_left_alone(
    sink: Any, invented: Any, layout: Layout, say: Any, tmp_path: Path, monkeypatch: Any, other: str
) -> None:
    """Two drivers with `runs/` of their own, and one store: each trial has a run from each."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(layout) + "?timeout=60")
    trial, elsewhere = invented.teachers[0], Layout(tmp_path / "elsewhere")
    info = invented.info.model_copy(update={"name": other, "key": "0123"} if other else {})

    def theirs(epoch: int) -> Any:
        record = say.record(trial.key, epoch)
        return record.model_copy(update={"metrics": {"train/loss": -1.0 * epoch}, "time": record.time + 500})

    first = sink()
    first.start(trial)
    first.epoch(say.record(trial.key, 1))
    assert first.flush(20)
    second = MlflowSink(info, elsewhere, pause=0.05)
    second.start(trial)
    for epoch in (1, 2, 3):
        second.epoch(theirs(epoch))
    assert second.flush(20)
    for epoch in (2, 3):
        first.epoch(say.record(trial.key, epoch))
    assert first.flush(20)
    second.close()
    found = [run for run in runs(layout, output_format="list") if run.data.tags.get(names.TAG_KEY)]
    states = {history(run, "train/loss")[0][1]: (run.info.status, len(history(run, "train/loss"))) for run in found}
    assert states == {-1.0: ("KILLED", 3), say.record(trial.key, 1).metrics["train/loss"]: ("RUNNING", 3)}
    third = MlflowSink(info, elsewhere, pause=0.05)
    third.start(trial)
    assert third.flush(20)
    found = [run for run in runs(layout, output_format="list") if run.data.tags.get(names.TAG_KEY)]
    assert [run.info.status for run in found] == ["RUNNING", "RUNNING"], "each goes on with its own"
    third._writer.stop(5)


def test_who_goes_on_with_a_run_that_was_left_owns_it(
    sink: Any, invented: Any, layout: Layout, say: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(layout) + "?timeout=60")
    trial, first = invented.teachers[0], sink()
    first.start(trial)
    first.close()
    second = MlflowSink(invented.info, Layout(tmp_path / "elsewhere"), pause=0.05)
    second.start(trial)
    assert second.flush(20)
    assert sink().flush(20)
    assert by_key(layout)[trial.key].info.status == "RUNNING", "it is trained elsewhere"
    second.close()


def labelled(info: Any, trial: Any, stage: str, **changes: Any) -> Any:
    labels = [one.model_copy(update={"stage": stage} if one.key == trial.key else {}) for one in info.labels]
    return info.model_copy(update={"labels": tuple(labels), **changes})


def test_a_candidate_that_is_compared_later_gets_the_rest(
    invented: Any, layout: Layout, say: Any, monkeypatch: Any
) -> None:
    registered = []
    monkeypatch.setattr("otkd.track.extras.keep_model", lambda *_: None)
    monkeypatch.setattr("otkd.track.extras.register", lambda *given: registered.append(given[3].key))
    trial, figure = invented.students[0], names.test("last", "top1")
    layout.trial(trial.key).path.mkdir(parents=True)
    layout.trial(trial.key).last.touch()
    search = labelled(invented.info, trial, "search", name="search", key="0123")
    searching = MlflowSink(search, layout, pause=0.05)
    searching.start(trial)
    searching.finish(say.result(trial.key))
    searching.close()
    assert registered == []
    again = MlflowSink(search, layout, pause=0.05)
    assert again.finished() == {trial.key}
    again.close()
    plain = MlflowSink(invented.info, layout, pause=0.05)
    assert plain.finished() == set(), "its result is to come again"
    plain.start(trial)
    plain.finish(say.result(trial.key))
    assert plain.finished() == {trial.key}
    plain.close()
    run = by_key(layout)[trial.key]
    assert run.info.status == "FINISHED"
    assert run.data.metrics[figure] == run.data.metrics[f"search/{figure}"] == say.result(trial.key).metrics[figure]
    assert "test top-1" in run.data.tags["mlflow.note.content"]
    assert registered == [trial.key]
    assert [step for step, _ in history(run, "train/loss")] == [1, 2, 3]


def test_a_winner_that_was_a_candidate_of_the_same_sweep_gets_the_rest(invented: Any, layout: Layout, say: Any) -> None:
    trial, figure = invented.students[0], names.test("last", "top1")
    search, final = (labelled(invented.info, trial, stage) for stage in ("search", "final"))
    sink = MlflowSink(search, layout, pause=0.05)
    sink.start(trial)
    sink.finish(say.result(trial.key))
    assert sink.flush(20)
    assert figure not in by_key(layout)[trial.key].data.metrics
    sink.describe(final.with_labels(search.labels))
    assert sink.finished() == set()
    sink.start(trial)
    sink.finish(say.result(trial.key))
    sink.close()
    run = by_key(layout)[trial.key]
    assert run.data.metrics[figure] == say.result(trial.key).metrics[figure]
    assert run.info.status == "FINISHED"


def test_a_result_that_is_told_late_has_the_times_of_its_training(
    sink: Any, invented: Any, layout: Layout, say: Any
) -> None:
    together, apart = invented.students[:2]
    layout.trial(apart.key).path.mkdir(parents=True)
    layout.trial(apart.key).result.touch()
    writer = sink()
    writer.start(apart)
    assert writer.flush(20)
    writer.finish(say.result(apart.key))
    with writer._writer._changed:  # both at once
        writer.start(together)
        writer.finish(say.result(together.key))
    writer.close()
    for run in by_key(layout).values():
        assert (run.info.start_time, run.info.end_time) == (1000 * say.t0, 1000 * (say.t0 + 100))
        assert run.data.params["student.name"] == "small"


def test_a_report_takes_the_place_of_an_earlier_one(sink: Any, layout: Layout, tmp_path: Path) -> None:
    folder, writer = tmp_path / "out", sink()
    (folder / "tables").mkdir(parents=True)
    for name in ("report.md", "tables/accuracy.csv", "tables/failures.csv"):
        (folder / name).write_text("old")
    writer.attach_report(folder, "")
    (folder / "tables" / "failures.csv").unlink()
    (folder / "report.md").write_text("new")
    writer.attach_report(folder, "")
    kept = Path(writer.store.client.download_artifacts(writer.run_id, "report", str(tmp_path)))
    assert {str(file.relative_to(kept)) for file in kept.rglob("*.*")} == {"report.md", "tables/accuracy.csv"}
    assert (kept / "report.md").read_text() == "new"


def test_a_store_that_deletes_nothing_takes_a_report_all_the_same(
    sink: Any, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError("no deleting")

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.delete_artifacts", refuse)
    folder, writer = tmp_path / "out", sink()
    folder.mkdir()
    (folder / "old.csv").write_text("")
    writer.attach_report(folder, "")
    (folder / "old.csv").unlink()
    with caplog.at_level(logging.WARNING, "otkd.track"):
        writer.attach_report(folder, "")
    assert "keeps files of an earlier one, which cannot be deleted: no deleting" in caplog.text


def test_a_long_title_is_cut_to_what_a_database_takes(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    trial = invented.students[0]
    axes = {f"transport.setting_number_{i}": 0.12345678901234567 + i for i in range(8)}
    labels = [one.model_copy(update={"axes": axes} if one.key == trial.key else {}) for one in invented.info.labels]
    invented.info = invented.info.model_copy(update={"labels": tuple(labels)})
    writer = sink()
    writer.start(trial)
    assert writer.flush(20)
    title = next(label.title for label in labels if label.key == trial.key)
    assert len(title) > 250
    assert by_key(layout)[trial.key].info.run_name == title[:250]


def test_no_tag_has_a_zero_byte(sink: Any, invented: Any, layout: Layout, say: Any) -> None:
    """PostgreSQL refuses them."""
    trial, writer = invented.students[0], sink()
    writer.start(trial)
    writer.finish(say.result(trial.key, "failed", reason="bad byte \x00 in file"))
    writer.close()
    tags = by_key(layout)[trial.key].data.tags
    assert tags[names.TAG_REASON] == "bad byte  in file"
    assert not [name for name, value in tags.items() if "\x00" in value]


def test_a_plan_that_was_refused_once_is_no_problem_for_good(sink: Any, invented: Any, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no")

    writer = sink()
    assert writer.flush(20)
    with monkeypatch.context() as refusing:
        refusing.setattr(writer.store.client, "log_text", refuse)
        writer.describe(invented.info)
        assert writer.flush(20)
    assert writer._losses() == "the sweep could not be logged: no"
    writer.describe(invented.info)
    invented.play(writer)
    writer.close()
    assert writer.store.client.get_run(writer.run_id).info.status == "FINISHED"
