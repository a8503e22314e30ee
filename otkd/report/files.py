"""Files of trials for tables and figures: `confusion.json`, `per-class.csv`, `snapshots.json`, …"""

from __future__ import annotations

import csv
import inspect
import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

PER_CLASS = "per-class.csv"
"""A trial's classes by label: name, test images, and how many of these the last weights recognise."""

SIDE_BY_SIDE = 8
"""Files that are read at once: of a server's, each takes little but the way there and back."""


class Files(Protocol):
    """What the record keeps of its trials as files. A plug-in gets it that names a parameter `files`."""

    def text(self, key: str, path: str) -> str | None:
        """A text file of a trial; threads may ask side by side.

        Args:
            key: of the trial: the column `key` of the frame.
            path: within the trial's run in MLflow, e.g. `confusion.json`.

        Returns:
            What stands in it; None where there is none.

        Raises:
            TrackingError: the store does not answer. Leave it to the report, which then goes on without the plug-in.
        """


class NoFiles:
    """Has nothing."""

    def text(self, key: str, path: str) -> str | None:
        """None."""
        return None


NONE = NoFiles()
"""For a report that is made without a store."""


class ClassCount(NamedTuple):
    """One class of `per-class.csv`."""

    name: str
    images: int
    """Test images."""
    right: int
    """How many of these the last weights recognise."""


def texts(files: Files, keys: Iterable[str], path: str) -> list[str | None]:
    """The same file of many trials, in their order; read side by side.

    Raises:
        TrackingError: the store does not answer.
    """
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(lambda key: files.text(key, path), keys))


def by_label(text: str | None) -> list[ClassCount]:
    """What `per-class.csv` says of every class, by label; empty without a text."""
    rows = csv.DictReader(io.StringIO(text or ""))
    return [ClassCount(row.get("class") or "", _count(row.get("images")), _count(row.get("right"))) for row in rows]


def call(function: Callable[..., Any], *given: Any, files: Files) -> Any:
    """Call a plug-in's `table`, `figure` or `caption`, with `files=` if its signature names such a parameter."""
    asks = "files" in inspect.signature(function).parameters
    return function(*given, files=files) if asks else function(*given)


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
