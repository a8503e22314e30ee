"""A copy of trials' folders that all machines reach: at any path that fsspec knows (`s3://…`, `gs://…`, `/mnt/…`).

The storage is what counts. Who takes a trial up makes its own folder the same as the one there, keeps checkpoints there
as it goes, and leaves the result there last: a trial is done when its `result.json` is there, as in `runs/`. What has
ended in `runs/` and not there gets there; on a node that shares no `runs/`, what the storage does not know goes.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from otkd.core.errors import StorageError
from otkd.core.layout import Layout, TrialDir, atomic
from otkd.core.records import EpochRecord, TrialResult
from otkd.core.trial import Trial, digest

log = logging.getLogger("otkd")

LOCAL = ("path", "previous", "pulse", "set_aside")
"""Parts of a trial's folder that concern the machine that trains it alone."""
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
"""Stores that show a file once it is complete, by the protocols of fsspec; elsewhere one is written aside and moved."""
PAUSES_S = (1.0, 4.0, 15.0)
"""How long to wait before another attempt to leave a trial's end on the storage."""


class Mirror:
    """Where trials' folders are kept beside `runs/`; this one, the default, is nowhere."""

    url: str | None = None

    def fetch(self, folder: TrialDir) -> None:
        """Make a trial's folder what the storage has of it.

        Where it has none, a checkpoint stays; a result in `runs/` stays, too, and gets there.
        """

    def fetch_weights(self, path: Path) -> None:
        """Get weights from outside that are not here."""

    def keep(self, folder: TrialDir) -> None:
        """Copy what has changed; when the storage does not answer that is told, and training goes on."""

    def settle(self, folder: TrialDir) -> None:
        """Copy what a trial has left at its end, its result last; raises `StorageError` when that is not possible."""


class Stamp(NamedTuple):
    """What tells one version of a file from the next."""

    size: int
    changed_ns: int


class Storage(Mirror):
    """A folder on a file system that fsspec knows.

    Args:
        url: where; credentials and endpoints come from the environment, as that file system has it.

    Raises:
        StorageError: on use, when it refuses, does not answer, or there is no package for it.
    """

    def __init__(self, url: str) -> None:
        self.url: str = url.rstrip("/") if "://" in url else str(Path(url).expanduser().resolve())
        self._known: dict[str, dict[str, Stamp]] = {}
        self._away = False

    def probe(self) -> None:
        """Write, read and delete a small file, so that what is not permitted is known before anything starts."""
        target, token = f"{self._root}/.probe-{uuid4().hex}", uuid4().hex.encode()
        with self._asked():
            self._put(token, target)
            read = self._files.cat_file(target)
            self._files.rm_file(target)
        if read != token:
            raise StorageError(f"storage {self.url}: what was written cannot be read back. Name another storage.")

    def fetch(self, folder: TrialDir) -> None:
        there = self._names(folder)
        if folder.result.name in there and self._same(folder.result, self._at(folder, folder.result.name)):
            return  # it ended, and lies here already
        if folder.done and folder.result.name not in there and not isinstance(folder, ScratchDir):
            self._leave_anew(folder, there)
            return
        for name in _result_last(folder, there):
            self._get(self._at(folder, name), folder.path / name)
        for path in _outdated(folder, there):
            path.unlink(missing_ok=True)
        self._known[folder.path.name] = {name: stamp for name, stamp in _stamps(folder).items() if name in there}

    def fetch_weights(self, path: Path) -> None:
        if not path.exists():
            self._get(f"{self._root}/weights/{path.name}", path)

    def keep(self, folder: TrialDir) -> None:
        try:
            self._copy(folder)
        except StorageError as error:
            if not self._away:
                log.warning("%s Training goes on, and the next checkpoint tries again.", error)
            self._away = True
        else:
            self._away = False

    def settle(self, folder: TrialDir) -> None:
        for pause in PAUSES_S:
            try:
                return self._copy(folder)
            except StorageError:
                time.sleep(pause)
        return self._copy(folder)

    def reconcile(self, folders: Iterable[TrialDir], weights: Iterable[Path] = ()) -> None:
        """Before training: what has ended there or here has ended in both, and what is begun here alone is there, too.

        Args:
            folders: those of a sweep's trials in the driver's `runs/`.
            weights: files of weights from outside.
        """
        there = self._all()
        for folder in folders:
            names = there.get(folder.path.name, {})
            ended = folder.result.name in names
            if ended and not folder.done:
                self._take_over(folder)
            elif (folder.done and not ended) or (folder.checkpoint.exists() and not names):
                self._leave_anew(folder, names)
        for path in weights:
            self._upload_once(path)

    def forget(self, folder: TrialDir) -> None:
        """Remove what the storage has of a trial."""
        names = self._names(folder)
        with self._asked():
            for name in names:
                self._files.rm_file(self._at(folder, name))
        self._known.pop(folder.path.name, None)

    def _take_over(self, folder: TrialDir) -> None:
        """Fetch a trial that ended elsewhere, unless that result was set aside here."""
        if folder.set_aside.exists() and self._same(folder.set_aside, self._at(folder, folder.result.name)):
            self.forget(folder)
        else:
            self.fetch(folder)

    def _leave_anew(self, folder: TrialDir, there: Iterable[str]) -> None:
        """Copy all of a trial, whatever the storage has of it."""
        self._known[folder.path.name] = dict.fromkeys(there, Stamp(-1, -1))
        self.settle(folder)

    def _copy(self, folder: TrialDir) -> None:
        """Copy what is new or has changed, and remove what is gone here."""
        known, now = self._known.setdefault(folder.path.name, {}), _stamps(folder)
        for name in _result_last(folder, now):
            if known.get(name) != now[name]:
                self._upload(folder.path / name, self._at(folder, name))
                known[name] = now[name]
        for name in [name for name in known if name not in now]:
            with self._asked():
                self._files.rm_file(self._at(folder, name))
            del known[name]

    def _upload_once(self, path: Path) -> None:
        target = f"{self._root}/weights/{path.name}"
        with self._asked():
            there = self._files.exists(target)
        if not there:
            self._upload(path, target)

    def _upload(self, path: Path, target: str) -> None:
        content = path.read_bytes()
        with self._asked():
            self._put(content, target)

    def _put(self, content: bytes, target: str) -> None:
        """Whole or not at all."""
        if not self._moves:
            self._files.pipe_file(target, content)
            return
        folder, _, name = target.rpartition("/")
        temporary = f"{folder}/.{name}.{uuid4().hex}.tmp"
        self._files.makedirs(folder, exist_ok=True)
        self._files.pipe_file(temporary, content)
        self._files.mv(temporary, target)

    def _get(self, source: str, path: Path) -> None:
        with self._asked():
            content: bytes = self._files.cat_file(source)
        with atomic(path) as temporary:
            temporary.write_bytes(content)

    def _same(self, path: Path, other: str) -> bool:
        if not path.exists():
            return False
        with self._asked():
            return bool(self._files.cat_file(other) == path.read_bytes())

    def _names(self, folder: TrialDir) -> dict[str, Any]:
        """Files that the storage has of a trial."""
        return self._all(folder.path.name).get(folder.path.name, {})

    def _all(self, key: str = "") -> dict[str, dict[str, Any]]:
        """Trial → names of its files on the storage; of one trial, or of all by one listing."""
        where = f"{self._root}/trials/{key}".rstrip("/")
        with self._asked():
            found: Iterable[str] = self._files.find(where)
        names: dict[str, dict[str, Any]] = {}
        for path in found:
            *_, trial, name = path.split("/")
            if not name.startswith("."):
                names.setdefault(trial, {})[name] = path
        return names

    def _at(self, folder: TrialDir, name: str) -> str:
        return f"{self._root}/trials/{folder.path.name}/{name}"

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    @cached_property
    def _moves(self) -> bool:
        protocol = self._files.protocol
        return not WHOLE & ({protocol} if isinstance(protocol, str) else set(protocol))

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        from fsspec.core import url_to_fs

        with self._asked():
            files, root = url_to_fs(self.url, use_listings_cache=False)
        return files, str(root).rstrip("/")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Every file system has errors of its own; all of them mean that the storage cannot be used."""
        try:
            yield
        except StorageError:
            raise
        except ImportError as error:
            way_out = "For s3:// that is `uv pip install 'otkd[s3]'`."
            raise StorageError(f"storage {self.url} needs a package that is not here: {error}. {way_out}") from error
        except Exception as error:
            raise StorageError(
                f"storage {self.url} refuses or does not answer ({type(error).__name__}: {_line(error)}). Check its "
                "address and the credentials in the environment, or leave storage out."
            ) from error


class ScratchDir(TrialDir):
    """A trial's folder on a node that shares no `runs/`: what has ended is the storage's to know."""


class Scratch(Layout):
    """The folders of such a node."""

    def trial(self, key: str) -> ScratchDir:
        return ScratchDir(self.trials / key)


class Fetcher:
    """A sink for drivers that share no `runs/` with their workers: gets what a trial has left before others hear of it.

    Raises:
        StorageError: on `finish`, when the storage does not answer.
    """

    def __init__(self, mirror: Mirror, layout: Layout) -> None:
        self._mirror, self._layout = mirror, layout

    def start(self, trial: Trial) -> None:
        self._layout.trial(trial.key).failed.unlink(missing_ok=True)  # it is being tried again

    def epoch(self, record: EpochRecord) -> None:
        pass

    def finish(self, result: TrialResult) -> None:
        if result.status != "pruned":
            self._mirror.fetch(self._layout.trial(result.key))

    def close(self) -> None:
        pass


def opened(url: str | None) -> Mirror:
    """The storage at a URL, or none."""
    return Storage(url) if url else Mirror()


def scratch(url: str, owner: str) -> Layout:
    """The folder of this machine where workers train whose results go to a storage.

    Args:
        url: the storage.
        owner: tells drivers apart, so that no two use one folder.
    """
    base = os.environ.get("OTKD_SCRATCH") or os.path.join(tempfile.gettempdir(), f"otkd-{os.getuid()}")
    return Scratch(Path(base) / digest([url, owner]))


def _mirrored(folder: TrialDir) -> list[Path]:
    """The files of a trial that others need."""
    return [path for part, path in vars(folder).items() if part not in LOCAL]


def _outdated(folder: TrialDir, there: Mapping[str, Any]) -> list[Path]:
    """What a trial's folder has and the storage does not; checkpoints stay where the storage knows of nothing newer."""
    kept = [folder.trial]
    if not there.keys() & {folder.checkpoint.name, folder.result.name}:
        kept += [folder.checkpoint, folder.previous]
    return [path for path in (*_mirrored(folder), folder.previous) if path.name not in there and path not in kept]


def _stamps(folder: TrialDir) -> dict[str, Stamp]:
    there = [path for path in _mirrored(folder) if path.exists()]
    return {path.name: Stamp(path.stat().st_size, path.stat().st_mtime_ns) for path in there}


def _result_last(folder: TrialDir, names: Mapping[str, Any]) -> list[str]:
    """In this order nobody ever sees a result whose weights are not there yet."""
    return sorted(names, key=lambda name: name == folder.result.name)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
