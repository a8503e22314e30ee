"""What a page that stays open asks of the store besides a sweep: what there is, whether it has changed, files."""

from __future__ import annotations

import time
from pathlib import Path

from otkd.core.layout import Layout

AGAIN_S = 60
"""Seconds after which a store is taken to have changed that cannot be asked whether it has: a server, PostgreSQL."""


def sweeps(layout: Layout) -> list[str]:
    """Names of the sweeps on record, the newest first.

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
    """
    from otkd.track import reader

    return list(dict.fromkeys(name for _, name, _ in reader.sweeps(layout)))


def store(layout: Layout) -> str:
    """What names the store and the experiment in it: equal where the same records are read."""
    from otkd.track import reader

    return reader.place(layout)


def stamp(layout: Layout) -> str:
    """Text that is the same as long as the store holds nothing new; nothing is read for it.

    A database in a file is new when it was written to; any other store every `AGAIN_S` seconds.
    """
    from otkd.track import reader

    file = reader.database_file(layout)
    if file is None:
        return str(int(time.time() // AGAIN_S))
    return " ".join(_written(file.with_name(file.name + suffix)) for suffix in ("", "-wal"))


def text(layout: Layout, run_id: str, path: str) -> str | None:
    """A text file among a run's artifacts; None where there is none.

    Raises:
        TrackingError: the store does not answer, or the file cannot be read.
    """
    from otkd.track import reader

    return reader.TrialFiles(layout, {run_id: (run_id, "")}).text(run_id, path)


def needs_ui(layout: Layout) -> bool:
    """Whether MLflow's pages are there only while `otkd ui` serves them."""
    from otkd.track import reader

    return reader.needs_ui(layout)


def _written(path: Path) -> str:
    """When a file was last written, and its size; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}:{found.st_size}"
