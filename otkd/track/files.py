"""Files of runs, as MLflow keeps them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.track.store import Store, answers, connect, shown

KEPT = 1024
"""Files that stay in memory."""


class TrialFiles:
    """The text files of trials. The store is not looked for before the first of them is asked for.

    Args:
        layout: the `runs/` folder.
        runs: trial key → id of its run; empty where it has none.
    """

    def __init__(self, layout: Layout, runs: Mapping[str, str]) -> None:
        self._layout, self._runs = layout, dict(runs)
        self._away: TrackingError | None = None
        self._store = cache(partial(connect, layout, create=False))
        self._names = cache(self._list)
        self._read = lru_cache(maxsize=KEPT)(self._find)

    def text(self, key: str, path: str) -> str | None:
        """A file of a trial by its path within the run, e.g. `confusion.json`; None where there is none.

        Raises:
            TrackingError: the store does not answer (it is not asked again), or does not give the file.
        """
        run_id = self._runs.get(key)
        return self._read(run_id, path) if run_id else None

    def _find(self, run_id: str, path: str) -> str | None:
        folder = kept_here(self._layout, run_id)
        if folder.is_dir():
            return (folder / path).read_text(encoding="utf-8") if (folder / path).is_file() else None
        if self._away is not None:
            raise self._away
        try:
            store = self._store()
        except TrackingError as error:
            self._away = error
            raise
        try:
            there = path in self._names(run_id, str(PurePosixPath(path).parent))
            return downloaded(store, run_id, path) if there else None
        except Exception as error:
            told = TrackingError(f"{shown(store.uri)}: {path} of run {run_id} cannot be read: {error}")
            self._away = None if answers(store) else told
            raise told from error

    def _list(self, run_id: str, folder: str) -> frozenset[str]:
        """Paths of the files that a folder of a run holds."""
        found = self._store().client.list_artifacts(run_id, None if folder == "." else folder)
        return frozenset(one.path for one in found if not one.is_dir)


def kept_here(layout: Layout, run_id: str) -> Path:
    """Where the files of a run lie if they lie in this `runs/`. MLflow's own paths break when that is moved."""
    return layout.artifacts / run_id / "artifacts"


def downloaded(store: Store, run_id: str, path: str) -> str:
    """A text file of a run.

    Raises:
        Exception: whatever MLflow raises when the store is away, or has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="otkd-file-") as folder:
        return Path(store.client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")
