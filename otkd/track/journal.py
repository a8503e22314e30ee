"""Epochs read back from the journal of a sweep, the file that `JsonlSink` writes."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from otkd.core.records import EpochRecord


class Journal:
    """Finds a trial's epochs without reading the file anew for each.

    Args:
        path: the file; it may be missing, and may grow while it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._places: dict[str, array[int]] = {}
        """Trial → where the lines of its epochs begin."""
        self._ends: dict[str, str] = {}
        """Trial → how it ended, until it begins again."""

    def trials(self) -> list[str]:
        """Trials with epochs, in the order of their first."""
        self._catch_up()
        return list(self._places)

    def epochs(self, key: str) -> list[EpochRecord]:
        """A trial's epochs in the order in which they ended, each once; after a divergence those of the new one."""
        self._catch_up()
        places = self._places.get(key)
        if not places:
            return []
        with self.path.open("rb") as file:
            found = {(record.stage, record.epoch): record for record in _records(file, reversed(places))}
        return list(reversed(found.values()))  # of an epoch that is there twice the first counts

    def _catch_up(self) -> None:
        """Look through what was written since the last time, as far as lines are whole."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._read:  # another file in its place
                    self._read, self._places, self._ends = 0, {}, {}
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._remember(line)
                    self._read += len(line)
        except FileNotFoundError:
            return

    def _remember(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind, key = event["event"], event["key"]
            if kind == "epoch":
                self._places.setdefault(key, array("Q")).append(self._read)
            if kind == "finish":
                self._ends[key] = event["status"]
            if kind == "start" and self._ends.pop(key, "") == "diverged":
                self._places.pop(key, None)
        except (ValueError, KeyError, TypeError):
            return  # not a line of ours


def _records(file: BinaryIO, places: Iterator[int]) -> Iterator[EpochRecord]:
    for place in places:
        file.seek(place)
        try:
            event = json.loads(file.readline())
            del event["event"]
            yield EpochRecord.model_validate(event)
        except (ValueError, KeyError, ValidationError):
            continue  # not a line of ours
