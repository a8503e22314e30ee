"""Records as lines of JSON, one per event: `{"event": "epoch", "key": …, "epoch": 3, "metrics": {…}, …}`.

A number that is not finite is written as `NaN` or `Infinity`, as Python's `json` reads and writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from time import time
from typing import Any

from otkd.core.errors import StorageError
from otkd.core.records import ENDED, EpochRecord, TrialResult
from otkd.core.trial import Trial


class JsonlSink:
    """Appends to a file. Epochs and results that are in it already are not written again.

    Args:
        path: the file; made with its folders where it is missing. A last line that a crash cut short is dropped.

    Raises:
        StorageError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._epochs: set[tuple[str, str, int]] = set()
        self._ended: dict[str, str] = {}
        """Trial → how it ended."""
        self.open: set[str] = set()
        """Trials that have begun and have no end here."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._recover()
            self._file = path.open("ab")
        except OSError as error:
            raise self._refusal(error) from error

    def start(self, trial: Trial) -> None:
        """A trial begins, or goes on."""
        self._append({"event": "start", "key": trial.key, "time": time(), "trial": trial.model_dump(mode="json")})
        self.open.add(trial.key)
        self._goes_on(trial.key)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended."""
        if _identity(record) not in self._epochs:
            self._append({"event": "epoch", **record.model_dump()})
            self._epochs.add(_identity(record))

    def finish(self, result: TrialResult) -> None:
        """A trial has ended; epochs which the file lacks are written first."""
        for record in result.epochs:
            self.epoch(record)
        self.open.discard(result.key)
        if self._ended.get(result.key) not in (result.status, *ENDED):
            self._append({"event": "finish", **result.model_dump(exclude={"epochs"})})
            if result.status != "failed":
                self._ended[result.key] = result.status

    def close(self) -> None:
        """Close the file.

        Raises:
            StorageError: the disk refuses what was still to be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise self._refusal(error) from error

    def _append(self, event: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _recover(self) -> None:
        """Learn what the file holds, and cut off a torn last line."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            self._remember(line)

    def _remember(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            if event["event"] == "epoch":
                self._epochs.add((event["key"], event["stage"], event["epoch"]))
            elif event["event"] == "start":
                self.open.add(event["key"])
                self._goes_on(event["key"])
            elif event["event"] == "finish":
                self.open.discard(event["key"])
                if event["status"] != "failed":
                    self._ended[event["key"]] = event["status"]
        except (ValueError, KeyError, TypeError):
            pass  # not a line of ours: it stays, and says nothing

    def _goes_on(self, key: str) -> None:
        """What was pruned may be gone on with, and what diverged trained anew; the end is then told again."""
        if self._ended.get(key) == "diverged":
            self._epochs = {known for known in self._epochs if known[0] != key}
        if self._ended.get(key) != "finished":
            self._ended.pop(key, None)

    def _refusal(self, error: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self.path}: {error.strerror or error}. Free some space or name another --runs."
        )


def _identity(record: EpochRecord) -> tuple[str, str, int]:
    return record.key, record.stage, record.epoch
