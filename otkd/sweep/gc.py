"""What may go from `runs/`: found here, listed and asked about by `otkd gc`. Results stay, whatever happens."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from pydantic import ValidationError

from otkd.core.errors import StorageError
from otkd.core.layout import Layout, TrialDir
from otkd.core.records import SweepInfo

STALE_S = 3600.0
"""Files on their way to their place are left behind by a crash when they are older than this, in seconds."""
TEMPORARY = (".*.tmp", ".token-*")
GOES_ON = ("start", "failed")
"""Last events of a trial that the next session of its sweep may go on with."""
DOWNLOADS = "downloads"
"""The folder in `cache/` that is no data set's own."""


class Waste(NamedTuple):
    """Things of one kind that may go."""

    what: str
    paths: tuple[Path, ...]
    """Files and folders."""

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(_size(path) for path in self.paths)


class Names(NamedTuple):
    """What the recorded sweeps name."""

    trials: frozenset[str]
    datasets: frozenset[str] | None
    """None where it is not known."""
    pruned: frozenset[str]
    """Trials that a search stopped, and nobody went on with since; none that failed, which may be tried again."""


def find(layout: Layout, *, superseded: bool = True, weights: bool = False) -> list[Waste]:
    """What may go, by kind; kinds of which there is nothing are left out.

    Args:
        superseded: whether that includes what belongs to no recorded sweep any more.
        weights: whether that includes weights of students that no recorded sweep names.

    Raises:
        StorageError: a sweep's record cannot be read, so nobody knows what it needs.
    """
    names, folders = recorded(layout), _folders(layout)
    kinds = [
        Waste("checkpoints of trials that have ended", _checkpoints(folders, lambda folder: folder.done)),
        Waste("checkpoints of pruned trials", _checkpoints(folders, lambda folder: _is_pruned(folder, names))),
    ]
    if superseded:
        kinds += _superseded(layout, folders, names, weights)
    kinds += [
        Waste("Ray's records of runs that are over", tuple(sorted(_inside(layout.ray)))),
        Waste("files that a crash left half-written", tuple(sorted(_half_written(layout.root)))),
    ]
    return [kind for kind in kinds if kind.paths]


def remove(wastes: Iterable[Waste]) -> None:
    """Remove all of it.

    Raises:
        StorageError: something cannot be removed; what was removed before is gone.
    """
    try:
        for path in (path for waste in wastes for path in waste.paths):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {error.filename}: {error.strerror}. The rest is as it was.") from error


def recorded(layout: Layout) -> Names:
    """What sweeps whose plan lies in `runs/records/` name. Errors as for `find`.

    A plan names no trials of a search under way, and old records have no plan; all that such a sweep's journal has
    begun counts as named.
    """
    infos = {info.name: info for info in map(_info, sorted(layout.records.glob("*.plan.json")))}
    trials = {label.key for info in infos.values() for label in info.labels}
    journals = {path.stem: _last_events(path) for path in layout.records.glob("*.jsonl")}
    for name, last in journals.items():
        if name not in infos or (layout.root / "search" / f"{infos[name].key}.jsonl").exists():
            trials |= set(last)
    datasets = frozenset(info.dataset for info in infos.values()) if journals.keys() <= infos.keys() else None
    return Names(frozenset(trials), datasets, frozenset(_pruned(journals.values())))


def _pruned(journals: Iterable[dict[str, str]]) -> set[str]:
    """Trials that a search stopped and no other sweep has begun since, nor failed at."""
    ends = [end for last in journals for end in last.items()]
    return {key for key, event in ends if event == "pruned"} - {key for key, event in ends if event in GOES_ON}


def _info(path: Path) -> SweepInfo:
    try:
        return SweepInfo.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise StorageError(
            f"{path} cannot be read, so nobody knows which trials it needs. `otkd sweep` of that file writes it anew; "
            "or delete it, if that sweep is done with."
        ) from error


def _last_events(journal: Path) -> dict[str, str]:
    """Trial → `start`, or how it ended, whichever came last."""
    last: dict[str, str] = {}
    with journal.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith('{"event": "epoch"'):
                continue
            event = _parsed(line)
            if "key" in event:
                last[event["key"]] = event.get("status", event["event"])
    return last


def _parsed(line: str) -> dict[str, Any]:
    """A line of a journal; nothing where a crash cut it short."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _folders(layout: Layout) -> list[TrialDir]:
    return [TrialDir(path) for path in sorted(_inside(layout.trials)) if path.is_dir()]


def _is_pruned(folder: TrialDir, names: Names) -> bool:
    return folder.path.name in names.pruned and not (folder.done or folder.failed.exists())


def _superseded(layout: Layout, folders: list[TrialDir], names: Names, weights: bool) -> list[Waste]:
    """What belongs to no recorded sweep."""

    def forgotten(folder: TrialDir) -> bool:
        key = folder.path.name
        return key not in names.trials and not folder.done and key not in names.pruned

    kinds = [
        Waste("checkpoints of trials that no recorded sweep names", _checkpoints(folders, forgotten)),
        Waste("images of data sets that no recorded sweep uses", tuple(sorted(_unused_caches(layout, names)))),
    ]
    if weights:
        students = [folder for folder in folders if folder.path.name not in names.trials and _is_student(folder)]
        files = [path for folder in students for path in (folder.last, folder.best) if path.exists()]
        kinds.append(Waste("weights of students that no recorded sweep names", tuple(files)))
    return kinds


def _checkpoints(folders: Iterable[TrialDir], chosen: Callable[[TrialDir], bool]) -> tuple[Path, ...]:
    files = (path for folder in folders if chosen(folder) for path in (folder.checkpoint, folder.previous))
    return tuple(path for path in files if path.exists())


def _is_student(folder: TrialDir) -> bool:
    """Weights of a network that teaches are needed by whoever learns from it next."""
    try:
        return _parsed(folder.trial.read_text(encoding="utf-8")).get("teacher") is not None
    except OSError:
        return False


def _unused_caches(layout: Layout, names: Names) -> Iterator[Path]:
    """Folders of decoded data sets; a name that was too long to keep is never known to be unused."""
    for path in _inside(layout.cache) if names.datasets is not None else ():
        name = unquote(path.name.partition("+")[0])
        if path.is_dir() and path.name != DOWNLOADS and "%" not in name and name not in (names.datasets or ()):
            yield path


def _half_written(root: Path) -> Iterator[Path]:
    for pattern in TEMPORARY:
        for path in root.rglob(pattern):
            if path.is_file() and time.time() - path.stat().st_mtime > STALE_S:
                yield path


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(below.lstat().st_size for below in path.rglob("*") if not below.is_dir())
