"""Files of trials for tables and figures: `confusion.json`, `per-class.csv`, `snapshots.json`, …"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol


class Files(Protocol):
    """What the record keeps of its trials as files. A plug-in gets it that names a parameter `files`."""

    def text(self, key: str, path: str) -> str | None:
        """A text file of a trial.

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


def call(function: Callable[..., Any], *given: Any, files: Files) -> Any:
    """Call a plug-in's `table`, `figure` or `caption`, with `files=` if its signature names such a parameter."""
    asks = "files" in inspect.signature(function).parameters
    return function(*given, files=files) if asks else function(*given)
