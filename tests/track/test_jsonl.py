"""The JSON-lines sink: every event once, through crashes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from otkd.core.errors import StorageError
from otkd.track.journal import Journal
from otkd.track.jsonl import JsonlSink


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_event_is_a_line(tmp_path: Path, invented: Any, say: Any) -> None:
    path = tmp_path / "new" / "records.jsonl"
    sink = JsonlSink(path)
    invented.play(sink)
    sink.close()
    events = lines(path)
    assert [e["event"] for e in events] == ["start", "epoch", "epoch", "epoch", "finish"] * 6
    assert [e["key"] for e in events[::5]] == [t.key for t in invented.trials]
    assert events[2]["metrics"] == say.record(invented.trials[0].key, 2).metrics


def test_a_torn_line_is_dropped_and_nothing_comes_twice(tmp_path: Path, invented: Any, say: Any) -> None:
    path, key = tmp_path / "records.jsonl", invented.trials[0].key
    sink = JsonlSink(path)
    sink.epoch(say.record(key, 1))
    sink.epoch(say.record(key, 2))
    sink.close()
    path.write_bytes(path.read_bytes()[:-7])
    sink = JsonlSink(path)
    for _ in range(2):
        sink.finish(say.result(key))
    sink.close()
    sink = JsonlSink(path)
    sink.finish(say.result(key))
    sink.close()
    assert [(e["event"], e.get("epoch")) for e in lines(path)] == [
        ("epoch", 1),
        ("epoch", 2),
        ("epoch", 3),
        ("finish", None),
    ]


def test_a_failed_trial_may_end_again(tmp_path: Path, invented: Any, say: Any) -> None:
    path, key = tmp_path / "records.jsonl", invented.trials[0].key
    for status in ("failed", "finished", "finished"):
        sink = JsonlSink(path)
        sink.finish(say.result(key, status, epochs=()))
        sink.close()
    assert [e["status"] for e in lines(path)] == ["failed", "finished"]


def test_not_a_number_and_foreign_lines(tmp_path: Path, invented: Any, say: Any) -> None:
    path, key = tmp_path / "records.jsonl", invented.trials[0].key
    path.write_bytes(b'what is this\n[1]\n{"event": "epoch"}\n\xff\n')
    sink = JsonlSink(path)
    sink.epoch(say.record(key, 1).model_copy(update={"metrics": {"train/loss": math.nan}}))
    sink.close()
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert math.isnan(last["metrics"]["train/loss"])


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        JsonlSink(tmp_path / "file" / "records.jsonl")


def test_what_began_and_has_no_end_is_known_also_to_the_next_session(tmp_path: Path, invented: Any, say: Any) -> None:
    path, (first, second, third) = tmp_path / "records.jsonl", invented.trials[:3]
    sink = JsonlSink(path)
    for trial in (first, second, third):
        sink.start(trial)
    sink.finish(say.result(first.key))
    sink.finish(say.result(second.key, "failed", epochs=()))
    assert sink.open == {third.key}
    sink.close()
    sink = JsonlSink(path)
    assert sink.open == {third.key}
    sink.start(second)
    assert sink.open == {second.key, third.key}
    sink.close()


def test_a_training_after_a_divergence_is_told_from_its_first_epoch(tmp_path: Path, invented: Any, say: Any) -> None:
    path, trial = tmp_path / "records.jsonl", invented.students[0]
    other, lost = invented.students[1], say.record(trial.key, 1).model_copy(update={"metrics": {"train/loss": 1e9}})
    sink = JsonlSink(path)
    sink.start(trial)
    sink.epoch(say.record(other.key, 1))
    sink.finish(say.result(trial.key, "diverged", epochs=(lost,)))
    assert Journal(path).epochs(trial.key) == [lost], "until it begins again"
    sink.close()
    for epoch in (1, 2):  # the new training is cut short after its first epoch
        sink = JsonlSink(path)
        sink.start(trial)
        for again in range(1, epoch + 1):
            sink.epoch(say.record(trial.key, again))
        sink.close()
    told = [(e["key"], e["epoch"]) for e in lines(path) if e["event"] == "epoch"]
    assert told == [(other.key, 1), (trial.key, 1), (trial.key, 1), (trial.key, 2)]
    journal = Journal(path)
    assert journal.epochs(trial.key) == [say.record(trial.key, 1), say.record(trial.key, 2)]
    assert journal.epochs(other.key) == [say.record(other.key, 1)]
