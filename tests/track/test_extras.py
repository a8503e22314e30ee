"""A trial's page: note, files, figures and digests, each there once however often they are written."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from otkd.core import names
from otkd.core.confusion import Confusion
from otkd.core.layout import Layout, TrialDir
from otkd.core.records import Picture, Pictures
from otkd.core.trial import Data, Trial
from otkd.track import extras
from otkd.track.curves import Axis, curves
from otkd.track.extras import attach, note_of, per_class
from otkd.track.inputs import dataset_inputs
from otkd.track.notes import Links, objective_in_words, plain, summary, trial_note
from otkd.track.picture import confusion_map
from otkd.track.store import Store, connect, repository
from otkd.track.views import TAG, view
from otkd.track.weights import Kept

SVG = "{http://www.w3.org/2000/svg}"
COUNTS = Confusion(classes=3, cells=((0, 0, 5), (0, 2, 1), (1, 0, 4), (1, 1, 2), (1, 2, 4)))


@pytest.fixture
def store(layout: Layout) -> Store:
    return connect(layout)


def begin(store: Store, key: str, kind: str = "student", sweep: str = "toy") -> str:
    tags = {names.TAG_KEY: key, names.TAG_KIND: kind, names.TAG_SWEEP: sweep}
    return str(store.client.create_run(store.experiment, tags=tags, run_name=key).info.run_id)


def files_of(store: Store, run_id: str) -> ArtifactRepository:
    return repository(store, store.client.get_run(run_id).info.artifact_uri)


def folder_of(layout: Layout, key: str) -> TrialDir:
    folder = layout.trial(key)
    folder.path.mkdir(parents=True)
    folder.confusion.write_text(COUNTS.model_dump_json())
    picture = Picture(about="plan", matrix=((0.5, 0.0), (0.25, 0.25)), classes=(0, 1))
    folder.snapshots.write_text(Pictures(pictures={"transport-plan": picture}).model_dump_json())
    return folder


def test_a_page_has_everything_once(store: Store, layout: Layout, invented: Any, say: Any) -> None:
    parent, trial = begin(store, "", "sweep", "a_b"), invented.students[1]
    teacher, run_id = begin(store, trial.teacher.key, "teacher"), begin(store, trial.key)
    label = next(label for label in invented.info.labels if label.key == trial.key)
    for _ in range(2):
        folder = folder_of_once(layout, trial.key)
        attach(store, run_id, files_of(store, run_id), trial, say.result(trial.key), label, folder)

    run = store.client.get_run(run_id)
    note = note_of(store, trial, say.result(trial.key), label, parent)
    assert "\\<script\\>" in note, "a method's name is no HTML"
    assert f"(#/experiments/{store.experiment}/runs/{teacher}?workflowType=machine_learning)" in note
    assert f"[a\\_b](#/experiments/{store.experiment}/runs/{parent}?workflowType=machine_learning)" in note
    files = {file.path for file in store.client.list_artifacts(run_id)}
    figures = {"learning-curves.svg", "confusion.png", "transport-plan.png"}
    assert files == {"trial.yaml", "environment.json", "confusion.json", "per-class.csv", "snapshots.json", *figures}
    here = Path(store.client.download_artifacts(run_id, ""))
    assert Trial.model_validate(yaml.safe_load((here / "trial.yaml").read_text())).key == trial.key
    assert json.loads((here / "environment.json").read_text())["commit"] == "abc123"
    assert Confusion.model_validate_json((here / "confusion.json").read_text()) == COUNTS
    assert all((here / name).read_bytes()[:4] == b"\x89PNG" for name in figures if name.endswith("png"))
    assert len(run.inputs.dataset_inputs) == 2, "training and test; nothing was held out"
    experiment = store.client.get_experiment(store.experiment)
    assert json.loads(experiment.tags[TAG]) == view()


def folder_of_once(layout: Layout, key: str) -> TrialDir:
    folder = layout.trial(key)
    return folder if folder.path.exists() else folder_of(layout, key)


def test_a_trial_of_which_nothing_is_kept(store: Store, layout: Layout, invented: Any, say: Any) -> None:
    trial = invented.students[0]
    run_id = begin(store, trial.key)
    broken = say.result(trial.key, "failed", epochs=(), metrics={}, reason="out of `memory`")
    attach(store, run_id, files_of(store, run_id), trial, broken, None, layout.trial(trial.key))
    assert {file.path for file in store.client.list_artifacts(run_id)} == {"trial.yaml", "environment.json"}
    note = note_of(store, trial, broken, None, begin(store, "", "sweep"))
    assert "failed: out of \\`memory\\`" in note
    assert "[big" not in note, "its teacher has no run to link to"


def test_what_cannot_be_drawn_does_no_harm(
    store: Store, layout: Layout, invented: Any, say: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trial = invented.students[0]
    folder = folder_of(layout, trial.key)
    folder.confusion.write_text("{")
    with caplog.at_level(logging.WARNING, "otkd.track"):
        run_id = begin(store, trial.key)
        attach(store, run_id, files_of(store, run_id), trial, say.result(trial.key), None, folder)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"{trial.key} has no page in MLflow"]


def test_an_outage_is_no_decoration(
    store: Store, layout: Layout, invented: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = invented.students[0]
    run_id = begin(store, trial.key)

    def away(*_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(store.client, "log_inputs", away)
    monkeypatch.setattr(extras, "answers", lambda _: False)
    with pytest.raises(ConnectionError):
        attach(store, run_id, files_of(store, run_id), trial, say.result(trial.key), None, layout.trial(trial.key))


def test_notes_say_how_a_trial_ended(invented: Any, say: Any) -> None:
    trial = invented.students[0]
    trial = trial.model_copy(update={"data": trial.data.model_copy(update={"val": 0.25})})
    figures = {"test/last/top1": 71.234, "test/best/top1": 72.5, "val/best/top1": 70.0, "val/best/epoch": 2.0}
    teacher = {names.TEACHER + "test/last/top1": 88.0}
    note = trial_note(trial, say.result(trial.key, metrics=figures | teacher), None, "toy", Links("", ""))
    assert "test top-1 **71.23 %** with the weights of the last epoch (3)" in note
    assert "72.50 % with those of epoch 2, which was best on validation images (70.00 %)" in note
    assert "big, seed 0, test top-1 88.00 %" in note
    assert "25% of the images held out for validation" in note


def test_the_note_of_a_searchs_candidate_has_no_test_figure(invented: Any, say: Any) -> None:
    trial, label = invented.students[0], invented.info.labels[-1].model_copy(update={"stage": "search"})
    result = say.result(trial.key, metrics={names.test("last", "top1"): 71.0, names.BEST_VAL_TOP1: 64.5})
    for text in (trial_note(trial, result, label, "toy", Links("")), summary(trial, result, label)):
        assert "**64.50 %**" in text
        assert "71.0" not in text


def test_candidates_of_a_search_are_not_registered(
    store: Store, layout: Layout, invented: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = invented.students[0]
    label = next(label for label in invented.info.labels if label.key == trial.key)
    registered: list[str] = []
    monkeypatch.setattr(extras, "keep_model", lambda *_: Kept("m-1", "file:///x"))
    monkeypatch.setattr(extras, "register", lambda *given: registered.append(given[5].stage))
    folder = folder_of(layout, trial.key)
    folder.last.touch()
    run_id = begin(store, trial.key)
    for stage in ("search", "final"):
        staged = label.model_copy(update={"stage": stage})
        attach(store, run_id, files_of(store, run_id), trial, say.result(trial.key), staged, folder)
    assert registered == ["final"]


def test_a_note_has_no_figure_that_there_is_not(invented: Any, say: Any) -> None:
    trial = invented.students[0]
    label = next(label for label in invented.info.labels if label.key == trial.key)
    figures = {names.test("last", "top1"): 70.0, names.test("best", "top1"): 71.0, names.BEST_EPOCH: 2.0}
    for stage in ("", "search"):
        text = trial_note(
            trial, say.result(trial.key, metrics=figures), label.model_copy(update={"stage": stage}), "toy", Links("")
        )
        assert "nan" not in text


def test_objectives_in_words() -> None:
    solver = {"name": "sinkhorn", "epsilon": 0.01}
    terms = {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 2.0}, "transport": {"solver": solver}}
    words = objective_in_words(terms)
    assert words == "0.1 × ce + 0.9 × kd (temperature 2.0) + 1 × transport (solver sinkhorn epsilon 0.01)"
    assert objective_in_words({"of_another_package": {"weight": 2.0, "depth": 3}}) == "2 × of_another_package (depth 3)"


def test_a_users_words_are_no_markup() -> None:
    assert plain("a_b *c* [d](e)\n# <f> `g` & |") == r"a\_b \*c\* \[d\](e) \# \<f\> \`g\` \& \|"


def test_parts_have_their_own_digests() -> None:
    def digests(**changes: Any) -> dict[str, str]:
        data = Data(name="digits", **changes)
        return {item.tags[0].value: item.dataset.digest for item in dataset_inputs(data)}

    whole, split = digests(), digests(val=0.2)
    assert list(whole) == ["training", "test"]
    assert list(split) == ["training", "validation", "test"]
    assert len({*split.values()}) == 3
    assert whole["test"] == split["test"], "the test images are the same"
    assert whole["training"] != split["training"]
    assert digests(val=0.2, skip=0) == split
    assert digests(val=0.2, split_seed=1)["validation"] != split["validation"]


def test_curves_show_what_there_is(say: Any) -> None:
    values = [(4.0, 10.0), (math.nan, 20.0), (2.0, 30.0)]
    epochs = [
        say.record("0" * 16, epoch).model_copy(update={"metrics": {"train/loss": loss, "val/top1": top1}})
        for epoch, (loss, top1) in enumerate(values, 1)
    ]
    drawn = curves(epochs[::-1], "<title> & more")
    assert drawn is not None
    lines = [line.get("points") for line in ElementTree.fromstring(drawn).iter(f"{SVG}polyline")]
    assert [len(points.split()) for points in lines if points] == [3, 2], "top-1 of each epoch, loss where it is finite"
    heights = [float(point.split(",")[1]) for point in str(lines[0]).split()]
    assert heights == sorted(heights, reverse=True), "more is higher"
    texts = {text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")}
    assert {"<title> & more", "validation", "training", "1", "2", "3", "10", "30"} <= texts
    assert curves([say.record("0" * 16, 1, stage="hint")], "none of the training proper") is None
    assert curves(epochs[:1], "one epoch") is not None


def test_axes_have_round_values() -> None:
    assert Axis(12.46, 75.1, 0, 100).ticks() == [20, 40, 60]
    assert Axis(1, 240, 0, 100).ticks(whole=True) == [50, 100, 150, 200]
    assert Axis(1, 2, 0, 100).ticks(whole=True) == [1, 2]
    assert Axis(0.5, 1.5, 0, 100).ticks(whole=True) == [1], "a single epoch"


def test_accuracy_by_class() -> None:
    header, *rows = csv.reader(per_class(COUNTS).splitlines())
    assert header[:3] == ["class", "top-1 %", "mistaken most for"], "what counts first: pages are narrow"
    assert rows == [
        ["0", "83.33", "2", "1", "6", "5"],
        ["1", "20.00", "0", "4", "10", "2"],
        ["2", "", "", "0", "0", "0"],
    ]


def test_the_confusion_map_has_classes_as_rows() -> None:
    axes = confusion_map(COUNTS).axes[0]
    shares = axes.images[0].get_array()
    assert shares is not None
    assert shares[1].tolist() == pytest.approx([40.0, 20.0, 40.0])
    assert {(text.get_text(), text.get_position()) for text in axes.texts} >= {("1", (2, 0)), ("4", (0, 1))}


def test_classes_have_names_where_the_data_set_has() -> None:
    called = ("ant", "bee", "cat")
    _, *rows = csv.reader(per_class(COUNTS, called).splitlines())
    assert [row[0] for row in rows] == [*called]
    assert [row[2] for row in rows] == ["cat", "ant", ""]
    axes = confusion_map(COUNTS, called).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [*called]
    assert [text.get_text() for text in axes.get_xticklabels()] == [*called]


def test_many_classes_stay_small() -> None:
    cells = tuple((label, (label * 7 + step) % 1000, 1) for label in range(1000) for step in range(50))
    text = Confusion(classes=1000, cells=cells).model_dump_json()
    assert len(text) < 1_000_000, "ImageNet's 50,000 test images, each mistaken in its own way"
    assert re.match(r'\{"classes":1000,"cells":\[\[0,0,1\]', text)
    assert not confusion_map(Confusion.model_validate_json(text)).axes[0].texts
