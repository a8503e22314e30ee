"""What the live page asks of a store: whether it has changed, a run's files, who serves MLflow's pages."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.report import live
from otkd.track import files
from otkd.track.store import Store


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return Layout(tmp_path)


def test_a_database_is_new_when_it_was_written_to(layout: Layout) -> None:
    assert live.stamp(layout) == live.stamp(layout)
    found = [live.stamp(layout)]
    for path, content in ((layout.database, "1"), (layout.database, "23"), (layout.root / "mlflow.db-wal", "4")):
        path.write_text(content)
        found.append(live.stamp(layout))
    os.utime(layout.database, (1, 1))
    found.append(live.stamp(layout))
    assert len(set(found)) == 5
    assert live.stamp(layout) == found[-1]


def test_a_file_that_the_user_names_is_looked_at(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    other = layout.root / "other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}?timeout=9")
    before = live.stamp(layout), live.store(layout)
    layout.database.write_text("not this one")
    assert (live.stamp(layout), live.store(layout)) == before
    other.write_text("this one")
    assert live.stamp(layout) != before[0]


def test_a_server_is_asked_again_after_a_while(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    now = 10_000 * live.AGAIN_S
    found = []
    for later in (0, live.AGAIN_S - 1, live.AGAIN_S):
        monkeypatch.setattr(live, "time", SimpleNamespace(time=lambda later=later: float(now + later)))
        found.append(live.stamp(layout))
    assert found[0] == found[1] != found[2]


def test_files_lie_here_or_nowhere(layout: Layout) -> None:
    folder = layout.artifacts / "abc" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "trial.yaml").write_text("seed: 7 é", encoding="utf-8")
    assert live.text(layout, "abc", "trial.yaml") == "seed: 7 é"
    assert live.text(layout, "abc", "confusion.json") is None
    assert live.text(layout, "", "trial.yaml") is None
    with pytest.raises(TrackingError, match="nothing is recorded"):  # no store is there to be asked
        live.text(layout, "other", "trial.yaml")


def test_files_come_from_the_store_where_they_are_not_here(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another `runs/` records in the same store: its files are asked for, by its address of them."""
    kept = layout.root / "elsewhere"
    kept.mkdir()
    (kept / "trial.yaml").write_text("seed: 7")
    run = SimpleNamespace(info=SimpleNamespace(artifact_uri=kept.as_uri()))
    client = SimpleNamespace(get_run=lambda run_id: run)
    store = Store(client, "1", "sqlite:///none")  # type: ignore[arg-type]
    monkeypatch.setattr(files, "connect", lambda layout, create: store)
    assert live.text(layout, "abc", "trial.yaml") == "seed: 7"
    assert live.text(layout, "abc", "confusion.json") is None


def test_a_file_that_cannot_be_read_is_not_taken_for_none(layout: Layout) -> None:
    folder = layout.artifacts / "abc" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "trial.yaml").write_bytes(b"\xff")
    with pytest.raises(TrackingError, match=r"trial\.yaml cannot be read"):
        live.text(layout, "abc", "trial.yaml")


@pytest.mark.parametrize(
    ("uri", "expected"), [("", True), ("postgresql://user:secret@host/mlflow", True), ("https://host:8443/", False)]
)
def test_pages_are_the_servers_or_ours(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, uri: str, expected: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert live.needs_ui(layout) is expected
