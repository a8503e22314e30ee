"""Learning curves between two reports: what has ended is read once, and nothing else is taken for it."""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from report_sweeps import full_sweep

from otkd.core import names
from otkd.core.layout import Layout
from otkd.report import cache, frame
from otkd.report.files import texts
from otkd.track import reader
from otkd.track.bulk import Columns, tidy
from otkd.track.reader import SweepRecord

EPOCHS = 5


class FakeStore:
    """Makes a curve of each run, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[tuple[str, str]] = set()
        self.shift = 0.0

    def curves(self, layout: Layout, run_ids: list[str], metric: str) -> Columns:
        self.asked |= {(run_id, metric) for run_id in run_ids}
        rows = [
            (place, epoch, self.value(run, metric, epoch)) for place, run in enumerate(run_ids) for epoch in epochs()
        ]
        place, epoch, value = np.array(rows).reshape(-1, 3).T
        return tidy(place.astype(int), epoch.astype(int), value)

    def value(self, run: str, metric: str, epoch: int) -> float:
        odd = {2: math.nan, 3: -math.inf}.get(epoch) if run.endswith("7") else None
        return self.shift + int(run[-2:], 16) + len(metric) / epoch if odd is None else odd

    def runs(self) -> set[str]:
        """Runs that were asked for since the last time."""
        asked, self.asked = self.asked, set()
        return {run for run, _ in asked}


def epochs() -> range:
    return range(1, EPOCHS + 1)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    made = FakeStore()
    monkeypatch.setattr(reader, "curves", made.curves)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return made


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def ended(record: SweepRecord) -> SweepRecord:
    """26 trials, of which one has no run; the others have ended, one by divergence; with a training loss."""
    rows = [
        row._replace(ended=1000 + place if row.run_id else None, metrics=row.metrics and logged(row.metrics))
        for place, row in enumerate(record.trials)
    ]
    return record._replace(trials=tuple(rows))


def logged(metrics: dict[str, float]) -> dict[str, float]:
    return {**metrics, names.TRAIN_LOSS: 0.5, names.VAL_TOP1: 50.0}


def changed(record: SweepRecord, place: int, **fields) -> SweepRecord:
    rows = list(record.trials)
    rows[place] = rows[place]._replace(**fields)
    return record._replace(trials=tuple(rows))


def file_of(layout: Layout):
    (path,) = layout.report_cache.iterdir()
    return path


def test_what_has_ended_is_read_once(layout, store, ended):
    first = cache.epochs(layout, ended)
    assert store.runs() == {row.run_id for row in ended.trials if row.run_id}
    again = cache.epochs(layout, ended)
    assert store.runs() == set()
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert set(first["metric"]) == {names.TRAIN_LOSS, names.VAL_TOP1, *frame.SPEEDS}
    assert first["value"].isna().any()
    assert np.isneginf(first["value"]).any()


def test_the_frame_is_that_of_the_curves_trial_by_trial(layout, store, ended):
    """Truth: the values by the formula, in the order metric, trial of the record, epoch."""
    made = cache.epochs(layout, ended)
    metrics = (names.TRAIN_LOSS, *frame.SPEEDS, names.VAL_TOP1)
    rows = [
        (row.label.key, metric, epoch, store.value(row.run_id, metric, epoch))
        for metric in metrics
        for row in ended.trials
        if metric in row.metrics
        for epoch in epochs()
    ]
    wanted = pd.DataFrame(rows, columns=["key", "metric", "epoch", "value"])
    pd.testing.assert_frame_equal(
        made.astype({"key": "str", "metric": "str"}), wanted.astype({"key": "str", "metric": "str"})
    )


@pytest.mark.parametrize("fields", [{"ended": 9}, {"run_id": "run-ff"}, {"status": "pruned"}])
def test_a_trial_that_was_gone_on_with_is_read_again(layout, store, ended, fields):
    before = cache.epochs(layout, ended)
    store.runs()
    later = changed(ended, 4, **fields)
    store.shift = 100.0
    made = cache.epochs(layout, later)
    assert store.runs() == {later.trials[4].run_id}
    own = made["key"] == later.trials[4].label.key
    assert own.any()
    assert (made["value"][own].dropna() > 99).all()
    pd.testing.assert_frame_equal(made[~own], before[~own])
    assert len(cache.epochs(layout, later)) == len(made)
    assert store.runs() == set()


def test_another_last_value_is_news(layout, store, ended):
    cache.epochs(layout, ended)
    store.runs()
    later = changed(ended, 5, metrics={**ended.trials[5].metrics, names.TRAIN_LOSS: 0.4})
    cache.epochs(layout, later)
    assert store.runs() == {ended.trials[5].run_id}


@pytest.mark.parametrize("status", ["running", "missing"])
def test_what_has_not_ended_is_read_every_time(layout, store, ended, status):
    record = changed(ended, 3, status=status, ended=None)
    for _ in range(2):
        cache.epochs(layout, record)
        asked = store.runs()
    assert asked == {record.trials[3].run_id}
    cache.epochs(layout, ended)
    assert store.runs() == {record.trials[3].run_id}, "it has ended"
    cache.epochs(layout, ended)
    assert store.runs() == set()


def test_deleted_runs_vanish(layout, store, ended):
    cache.epochs(layout, ended)
    gone = ended.trials[6]
    left = changed(ended, 6, run_id="", status="missing", metrics={}, ended=None)
    made = cache.epochs(layout, left)
    assert gone.label.key not in set(made["key"])
    assert len(set(made["key"])) == 24
    assert store.runs() >= {gone.run_id}, "by the first reading alone"


def test_another_store_has_a_cache_of_its_own(layout, store, ended, monkeypatch):
    cache.epochs(layout, ended)
    everything = store.runs()
    for name, value in (("MLFLOW_TRACKING_URI", "https://u:secret@host"), ("MLFLOW_EXPERIMENT_NAME", "mine")):
        monkeypatch.setenv(name, value)
        cache.epochs(layout, ended)
        assert store.runs() == everything
    assert len(list(layout.report_cache.iterdir())) == 3
    assert not any(b"secret" in path.read_bytes() for path in layout.report_cache.iterdir())


def test_another_sweep_and_another_version_have_their_own(layout, store, ended, monkeypatch):
    cache.epochs(layout, ended)
    everything = store.runs()
    cache.epochs(layout, ended._replace(run_id="another"))
    assert store.runs() == everything
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    cache.epochs(layout, ended)
    assert store.runs() == everything


def test_a_file_under_another_name_is_not_taken(layout, store, ended, caplog):
    cache.epochs(layout, ended)
    mine = file_of(layout)
    cache.epochs(layout, ended._replace(run_id="another"))
    (other,) = set(layout.report_cache.iterdir()) - {mine}
    mine.write_bytes(other.read_bytes())
    everything = store.runs()
    cache.epochs(layout, ended)
    assert store.runs() == everything
    assert "it is not what its name says" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "text", "folder"])
def test_a_damaged_file_costs_a_note(layout, store, ended, damage, caplog):
    wanted = cache.epochs(layout, ended)
    path = file_of(layout)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        flipped = bytes(byte ^ 0x5A if place % 97 == 50 else byte for place, byte in enumerate(data))
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "bits": flipped, "text": b"PAR1 no"}[damage])
    everything = store.runs()
    with caplog.at_level(logging.WARNING, "otkd.report"):
        pd.testing.assert_frame_equal(cache.epochs(layout, ended), wanted)
    assert store.runs() == everything
    assert "cannot be read" in caplog.text
    cache.epochs(layout, ended)
    assert store.runs() == (everything if damage == "folder" else set())


@pytest.mark.parametrize("place", range(4, 4000, 333))
def test_no_flipped_byte_among_the_values_passes(layout, store, ended, place):
    wanted = cache.epochs(layout, ended)
    data = bytearray(file_of(layout).read_bytes())
    data[place % len(data)] ^= 0xFF
    file_of(layout).write_bytes(data)
    pd.testing.assert_frame_equal(cache.epochs(layout, ended), wanted)


def test_a_disk_that_cannot_be_written_costs_a_note(layout, store, ended, caplog):
    layout.reports.mkdir(parents=True)
    layout.report_cache.write_text("a file where the folder should be")
    made = cache.epochs(layout, ended)
    assert len(made)
    assert "reads every learning curve again" in caplog.text
    assert cache.epochs(layout, ended).equals(made)


def test_several_at_once_do_no_harm(layout, store, ended):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: cache.epochs(layout, ended), range(16)))
    assert all(one.equals(made[0]) for one in made)
    store.runs()
    cache.epochs(layout, ended)
    assert store.runs() == set()
    assert [path.suffix for path in layout.report_cache.iterdir()] == [".parquet"], "nothing half written stays"


def test_a_sweep_in_which_nothing_has_ended_leaves_no_file(layout, store):
    record = full_sweep().record()
    assert all(row.ended is None for row in record.trials)
    cache.epochs(layout, record)
    assert not layout.report_cache.exists()


class Remote:
    """Files that are on a server; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def text(self, key: str, path: str) -> str | None:
        self.asked.append((key, path))
        return None if path == "none.txt" else f"{path} of {key}: Grüße"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    made = Remote()
    monkeypatch.setattr(reader, "files", lambda layout, record: made)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return made


def read_all(layout: Layout, record: SweepRecord, *paths: str) -> list[str | None]:
    files = cache.CachedFiles(layout, record)
    found = texts(files, [row.label.key for row in record.trials for _ in paths], paths[0])
    found += [files.text(record.trials[0].label.key, path) for path in paths[1:]]
    files.keep()
    return found


def test_files_of_trials_that_have_ended_are_fetched_once(layout, remote, ended):
    first = read_all(layout, ended, "per-class.csv", "none.txt")
    assert first[-1] is None
    assert len(set(remote.asked)) == 26 + 1
    remote.asked.clear()
    assert read_all(layout, ended, "per-class.csv", "none.txt") == first
    without_run = next(row.label.key for row in ended.trials if not row.run_id)
    assert {key for key, _ in remote.asked} == {without_run}, "which has nothing to be kept"


def test_a_file_of_a_trial_that_was_gone_on_with_is_fetched_again(layout, remote, ended):
    read_all(layout, ended, "per-class.csv")
    later = changed(changed(ended, 4, ended=9), 5, status="running", ended=None)
    for place in ({4, 5}, {5}):
        remote.asked.clear()
        read_all(layout, later, "per-class.csv")
        assert {key for key, _ in remote.asked} >= {ended.trials[one].label.key for one in place}
        assert len({key for key, _ in remote.asked}) == len(place) + 1, "and the one without a run"


def test_another_report_forgets_no_file(layout, remote, ended):
    read_all(layout, ended, "per-class.csv")
    read_all(layout, ended, "confusion.json")
    remote.asked.clear()
    read_all(layout, ended, "per-class.csv")
    assert len(remote.asked) == 1


def test_files_that_lie_here_are_not_kept(layout, remote, ended, tmp_path):
    here = ended._replace(trials=tuple(row._replace(place=tmp_path.as_uri()) for row in ended.trials))
    read_all(layout, here, "per-class.csv")
    assert len(remote.asked) == 26
    assert not layout.report_cache.exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1 no", None])
def test_damaged_files_cost_a_note(layout, remote, ended, damage, caplog):
    wanted = read_all(layout, ended, "per-class.csv")
    data = file_of(layout).read_bytes()
    file_of(layout).write_bytes(data[: len(data) // 2] if damage is None else damage)
    remote.asked.clear()
    assert read_all(layout, ended, "per-class.csv") == wanted
    assert len(remote.asked) == 26
    assert "files of trials are fetched again" in caplog.text


def test_files_that_cannot_be_kept_cost_a_note(layout, remote, ended, caplog):
    layout.reports.mkdir(parents=True)
    layout.report_cache.write_text("a file where the folder should be")
    assert read_all(layout, ended, "per-class.csv") == read_all(layout, ended, "per-class.csv")
    assert "the next report fetches files of trials again" in caplog.text
