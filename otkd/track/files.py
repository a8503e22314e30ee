"""Files of runs, as MLflow keeps them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath
from threading import Lock
from urllib.parse import urlsplit
from urllib.request import url2pathname

from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.track.store import Store, answers, connect, repository, shown

KEPT = 1024
"""Files that stay in memory."""


class TrialFiles:
    """The text files of trials; threads may ask side by side. The store is not looked for before one is asked for.

    Args:
        layout: the `runs/` folder.
        runs: trial key → id of its run (empty where it has none), and the address of the run's files (or empty: it is
            looked up).
    """

    def __init__(self, layout: Layout, runs: Mapping[str, tuple[str, str]]) -> None:
        self._layout, self._runs = layout, dict(runs)
        self._away: TrackingError | None = None
        self._store = cache(partial(connect, layout, create=False))
        self._opening = Lock()
        self._places, self._names = cache(self._place), cache(self._list)
        self._read = lru_cache(maxsize=KEPT)(self._find)

    def text(self, key: str, path: str) -> str | None:
        """A file of a trial by its path within the run, e.g. `confusion.json`; None where there is none.

        Raises:
            TrackingError: the store does not answer (it is not asked again), or does not give the file.
        """
        run_id, place = self._runs.get(key, ("", ""))
        return self._read(run_id, place, path) if run_id else None

    def _find(self, run_id: str, place: str, path: str) -> str | None:
        folder = folder_of(self._layout, run_id, place)
        if folder is not None:
            return _text(folder / path)
        store = self._opened()
        try:
            place = place or self._places(run_id)
            there = path in self._names(place, str(PurePosixPath(path).parent))
            return downloaded(store, place, path) if there else None
        except Exception as error:
            told = TrackingError(f"{shown(store.uri)}: {path} of run {run_id} cannot be read: {error}")
            self._away = None if answers(store) else told
            raise told from error

    def _opened(self) -> Store:
        """The store; one that does not answer is asked once."""
        with self._opening:
            if self._away is not None:
                raise self._away
            try:
                return self._store()
            except TrackingError as error:
                self._away = error
                raise

    def _place(self, run_id: str) -> str:
        """The address of a run's files, for which MLflow reads the whole run."""
        return str(self._store().client.get_run(run_id).info.artifact_uri)

    def _list(self, place: str, folder: str) -> frozenset[str]:
        """Paths of the files that a folder of a run holds."""
        found = repository(self._store(), place).list_artifacts(None if folder == "." else folder)
        return frozenset(one.path for one in found if not one.is_dir)


def kept_here(layout: Layout, run_id: str) -> Path:
    """Where the files of a run lie if they lie in this `runs/`. MLflow's own paths break when that is moved."""
    return layout.artifacts / run_id / "artifacts"


def folder_of(layout: Layout, run_id: str, place: str) -> Path | None:
    """Where the files of a run lie on this machine; None where they have to be fetched.

    Args:
        place: the address that MLflow has of them; empty where it is not known.
    """
    here = kept_here(layout, run_id)
    if here.is_dir():
        return here
    scheme = urlsplit(place).scheme
    if scheme == "file":
        return Path(url2pathname(urlsplit(place).path))
    return Path(place) if place and not scheme else None


def downloaded(store: Store, place: str, path: str) -> str:
    """A text file of a run whose files are kept at an address.

    Raises:
        Exception: whatever MLflow raises when the store is away, or has no such file.
    """
    with tempfile.TemporaryDirectory(prefix="otkd-file-") as folder:
        return Path(repository(store, place).download_artifacts(path, folder)).read_text(encoding="utf-8")


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise TrackingError(f"{file} cannot be read: {error}") from error
