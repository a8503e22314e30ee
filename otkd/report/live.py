"""What a page that stays open asks of the store besides a sweep: what there is, whether it has changed, files."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from otkd.core.layout import Layout

FILE = "sqlite:///"
"""How the address of a database in a file begins."""

AGAIN_S = 60
"""Seconds after which a store is taken to have changed that cannot be asked whether it has: a server, PostgreSQL."""

PAGES = "http://127.0.0.1:5000"
"""Where `otkd ui` shows MLflow's pages unless it is given another port."""


def sweeps(layout: Layout) -> list[str]:
    """Names of the sweeps on record, the newest first.

    Raises:
        TrackingError: nothing is recorded yet, or the store does not answer.
    """
    from otkd.track import reader

    return list(dict.fromkeys(name for _, name, _ in reader.sweeps(layout)))


def store(layout: Layout) -> str:
    """What names the store and the experiment in it: equal where the same records are read."""
    return f"{_uri(layout)} {os.environ.get('MLFLOW_EXPERIMENT_NAME') or ''}"


def stamp(layout: Layout) -> str:
    """Text that is the same as long as the store holds nothing new; nothing is read for it.

    A database in a file is new when it was written to; any other store every `AGAIN_S` seconds.
    """
    uri = _uri(layout)
    if not uri.startswith(FILE):
        return str(int(time.time() // AGAIN_S))
    path = uri.removeprefix(FILE).partition("?")[0]
    return " ".join(_written(Path(path + suffix)) for suffix in ("", "-wal"))


def text(layout: Layout, run_id: str, path: str) -> str | None:
    """A text file among a run's artifacts; None where there is none, or the store cannot be asked.

    Read here if the run's files are here, as MLflow's own paths break when `runs/` is moved.
    """
    here = layout.artifacts / run_id / "artifacts"
    if not run_id:
        return None
    if here.is_dir():
        return (here / path).read_text(encoding="utf-8") if (here / path).is_file() else None
    from otkd.track import reader

    try:
        client = reader.connect(layout, create=False).client
        with tempfile.TemporaryDirectory(prefix="otkd-file-") as folder:
            return Path(client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
    except Exception:  # of MLflow, of the network, of the storage behind it: a page goes on without the file
        return None


def page(layout: Layout, run_id: str) -> str:
    """Address of a run in MLflow's pages: on the tracking server where one is named, else where `otkd ui` has them.

    Raises:
        TrackingError: the store does not answer.
    """
    from otkd.track import reader

    uri = _uri(layout)
    server = re.sub(r"//[^/]*@", "//", uri).rstrip("/") if uri.startswith(("http://", "https://")) else PAGES
    return f"{server}/#/experiments/{reader.connect(layout, create=False).experiment}/runs/{run_id}"


def _uri(layout: Layout) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{FILE}{layout.database.resolve()}"


def _written(path: Path) -> str:
    """When a file was last written, and its size; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}:{found.st_size}"
