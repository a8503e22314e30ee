"""Files of trials, read here, or fetched from a store, or not there."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.report.files import texts
from otkd.track import files as track_files
from otkd.track.files import TrialFiles
from otkd.track.mlflow import MlflowSink
from otkd.track.reader import SweepRecord, are_here, files, read_sweep
from otkd.track.store import Store, connect, served

TEXT = "Grüße, 'φ'\n"


@pytest.fixture
def sweep(layout: Layout, invented: Any) -> SweepRecord:
    """A recorded sweep; the first trial has a file, and one in a folder."""
    sink = MlflowSink(invented.info, layout)
    invented.play(sink)
    sink.close()
    found = read_sweep(layout)
    store = connect(layout, create=False)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.txt").write_text(TEXT, encoding="utf-8")
        store.client.log_artifact(found.trials[0].run_id, f"{folder}/one.txt")
        store.client.log_artifact(found.trials[0].run_id, f"{folder}/one.txt", "deep")
    return found


def test_a_file_is_read_where_it_lies(layout: Layout, sweep: SweepRecord, monkeypatch: Any) -> None:
    monkeypatch.setattr(track_files, "connect", lambda *_, **__: pytest.fail("the store was asked"))
    of = files(layout, sweep)
    first, other = sweep.trials[0].label.key, sweep.trials[1].label.key
    assert of.text(first, "one.txt") == of.text(first, "deep/one.txt") == TEXT
    assert of.text(first, "two.txt") is None
    assert of.text(other, "one.txt") is None
    assert of.text("unknown", "one.txt") is None


def test_a_trial_without_a_run_has_nothing(layout: Layout) -> None:
    assert TrialFiles(layout, {"a": ("", "")}).text("a", "one.txt") is None


def unplaced(sweep: SweepRecord) -> SweepRecord:
    """As if MLflow's addresses of files were not known."""
    return sweep._replace(trials=tuple(row._replace(place="") for row in sweep.trials))


class Counted:
    """A store's client that counts what it is asked."""

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, []

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any) -> Any:
            self.asked.append((name, *given[:2]))
            return getattr(self.client, name)(*given)

        return ask


def elsewhere(layout: Layout, sweep: SweepRecord, tmp_path: Path) -> tuple[TrialFiles, Store]:
    """The same sweep as read from another `runs/`, whose files are looked up by MLflow's address of them."""
    store = connect(layout, create=False)
    counted = store._replace(client=Counted(store.client))
    of = files(Layout(tmp_path / "elsewhere"), unplaced(sweep))
    of._store = lambda: counted  # type: ignore[assignment]
    return of, counted


def test_a_file_is_fetched_once(layout: Layout, sweep: SweepRecord, tmp_path: Path, monkeypatch: Any) -> None:
    fetched, listed = [], []

    class Noted(LocalArtifactRepository):  # type: ignore[misc]
        def download_artifacts(self, path: str, folder: str) -> str:
            fetched.append(path)
            return super().download_artifacts(path, folder)

        def list_artifacts(self, path: str | None = None) -> Any:
            listed.append(path)
            return super().list_artifacts(path)

    monkeypatch.setattr(track_files, "repository", lambda store, place: Noted(place))
    of, store = elsewhere(layout, sweep, tmp_path)
    key, run = sweep.trials[0].label.key, sweep.trials[0].run_id
    for _ in range(2):
        assert of.text(key, "one.txt") == TEXT
        assert of.text(key, "deep/one.txt") == TEXT
        assert of.text(key, "deep/two.txt") is None
        assert of.text(key, "deep") is None, "a folder is no file"
    assert fetched == ["one.txt", "deep/one.txt"]
    assert listed == [None, "deep"], "and each of its two folders is listed once"
    assert store.client.asked == [("get_run", run)], "for the address of the files"  # type: ignore[attr-defined]


def test_files_that_lie_where_mlflow_says_are_read_there(
    layout: Layout, sweep: SweepRecord, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(track_files, "connect", lambda *_, **__: pytest.fail("the store was asked"))
    here = Layout(tmp_path / "elsewhere")
    of, row = files(here, sweep), sweep.trials[0]
    assert of.text(row.label.key, "deep/one.txt") == TEXT
    assert of.text(row.label.key, "two.txt") is None
    assert are_here(here, row)
    assert not are_here(here, row._replace(place="mlflow-artifacts:/1/abc/artifacts"))
    assert not are_here(here, row._replace(place=""))


def test_threads_look_for_the_store_once(layout: Layout, sweep: SweepRecord, tmp_path: Path, monkeypatch: Any) -> None:
    tried = []

    def away(*_: Any, **__: Any) -> Store:
        tried.append(1)
        time.sleep(0.05)
        raise TrackingError("nobody is there")

    monkeypatch.setattr(track_files, "connect", away)
    of = files(Layout(tmp_path / "elsewhere"), unplaced(sweep))
    with pytest.raises(TrackingError, match="nobody is there"):
        texts(of, [row.label.key for row in sweep.trials], "one.txt")
    assert len(tried) == 1


def test_many_are_read_in_their_order(layout: Layout, sweep: SweepRecord) -> None:
    keys = [row.label.key for row in sweep.trials]
    wanted = [json.loads(text)["key"] for text in texts(files(layout, sweep), keys, "result.json") if text]
    assert wanted == keys


def test_a_store_that_does_not_answer_is_asked_once(layout: Layout, sweep: SweepRecord, monkeypatch: Any) -> None:
    tried = []

    def away(*_: Any, **__: Any) -> Store:
        tried.append(1)
        raise TrackingError("nobody is there")

    monkeypatch.setattr(track_files, "connect", away)
    shutil.rmtree(layout.artifacts)
    of = files(layout, unplaced(sweep))
    for _ in range(2):
        with pytest.raises(TrackingError, match="nobody is there"):
            of.text(sweep.trials[0].label.key, "one.txt")
    assert len(tried) == 1


@pytest.mark.parametrize("answering", [True, False])
def test_a_store_that_fails_in_between(
    layout: Layout, sweep: SweepRecord, tmp_path: Path, monkeypatch: Any, answering: bool
) -> None:
    of, _ = elsewhere(layout, sweep, tmp_path)
    key = sweep.trials[0].label.key

    def fails(*_: Any) -> str:
        raise OSError("broken pipe")

    with monkeypatch.context() as broken:
        broken.setattr(track_files, "downloaded", fails)
        broken.setattr(track_files, "answers", lambda store: answering)
        with pytest.raises(TrackingError, match=r"one\.txt of run \w+ cannot be read: broken pipe"):
            of.text(key, "one.txt")
    if answering:
        assert of.text(key, "one.txt") == TEXT
    else:
        with pytest.raises(TrackingError, match="broken pipe"):
            of.text(key, "one.txt")


def test_a_record_knows_the_digests_of_its_images(sweep: SweepRecord, invented: Any) -> None:
    from otkd.track.inputs import dataset_inputs

    for row, trial in zip(sweep.trials, invented.trials, strict=True):
        wanted = {one.tags[0].value: one.dataset.digest for one in dataset_inputs(trial.data)}
        assert dict(row.data) == wanted
        assert len(wanted) > 1


def test_a_record_knows_its_pages(sweep: SweepRecord, layout: Layout) -> None:
    experiment = connect(layout, create=False).experiment
    address = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/abc?workflowType=machine_learning"
    assert sweep.page("abc") == address
    assert sweep.page("") == sweep._replace(ui="").page("abc") == ""
    assert '"' not in sweep.page('"><script>')
    assert ">" not in sweep.page('"><script>')


@pytest.mark.parametrize(
    ("uri", "pages"),
    [
        ("sqlite:////tmp/mlflow.db", "http://127.0.0.1:5000"),
        ("postgresql+psycopg://me:secret@db/otkd", "http://127.0.0.1:5000"),
        ("https://me:se%40cret@host:8443/mlflow/?token=x", "https://host:8443/mlflow"),
        ("http://host", "http://host"),
    ],
)
def test_pages_are_at_the_server_or_where_ui_serves_them(uri: str, pages: str) -> None:
    assert served(uri) == pages
