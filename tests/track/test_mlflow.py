"""The sink against a real MLflow: what comes out of `mlflow.search_runs` is what went in."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from otkd.core import names
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.core.records import Picture, Pictures
from otkd.track.mlflow import MlflowSink, note
from otkd.track.picture import heat_map
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
    found = [run for run in runs(layout, output_format="list") if names.TAG_KEY in run.data.tags]
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
        assert row["start_time"].timestamp() == pytest.approx(time.time(), abs=60)
        assert row["end_time"].timestamp() == say.t0 + 100
    student = trials.loc[invented.students[0].key]
    assert student["params.teacher.student.name"] == "big"
    assert student["params.objective.kd.weight"] == "0.9"


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
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, len(used.dataset.digest), used.tags[0].value) == ("toy", 16, "training")
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
    log_text = client.log_text

    def refuse(run_id: str, text: str, file: str) -> None:
        if bad.key in text:
            raise ValueError("no room for this one")
        log_text(run_id, text, file)

    monkeypatch.setattr(client, "log_text", refuse)
    for t in (bad, good):
        writer.start(t)
        writer.finish(say.result(t.key))
    with pytest.raises(TrackingError, match=r"kd · seed 0 .*no room for this one"):
        writer.close()
    writer.close()  # once is enough
    assert by_key(layout)[good.key].info.status == "FINISHED"


def test_an_outage_delays_and_loses_nothing(
    sink: Any, invented: Any, layout: Layout, say: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    writer = sink()
    client, log_batch, calls = writer.store.client, writer.store.client.log_batch, []

    def away(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(client, "log_batch", away)
    monkeypatch.setattr(client, "get_experiment", away)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "otkd.track"):
        invented.play(writer)
        assert time.monotonic() - began < 0.2, "training waits for tracking"
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:  # until the writer has met the outage
            time.sleep(0.01)
        assert not writer.flush(0.1)
        assert len(writer.pending) == 6
        monkeypatch.setattr(client, "log_batch", log_batch)
        monkeypatch.undo()
        assert writer.flush(20)
    writer.close()
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        "the tracking store does not answer",
        "the tracking store answers again",
    ]
    assert all(len(history(run, "lr")) == say.epochs for run in by_key(layout).values())


def test_what_could_not_be_logged_is_counted(sink: Any, invented: Any, monkeypatch: Any) -> None:
    writer = sink()

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody there")

    for method in ("create_run", "search_runs", "get_experiment"):
        monkeypatch.setattr(writer.store.client, method, away)
    invented.play(writer)
    with pytest.raises(TrackingError, match=r"6 trials' records .* next run of the same command"):
        writer.close(timeout=0.3)
