"""Images that lie in folders: which there are, of which class, and the list of them, kept from one run to the next.

A list of a million files takes minutes to make and a second to read. It is made anew when a folder has another time of
change than it had: when a file came, went or was renamed. A file that was overwritten in place changes no folder; only
`otkd data verify` notices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otkd.core.datasets import Request, plugin_of
from otkd.core.errors import DataError, StorageError, did_you_mean
from otkd.core.layout import atomic
from otkd.core.locks import locked
from otkd.data.cache import place, reader

log = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, in small letters or capitals; the same as torchvision's `IMG_EXTENSIONS`."""
SHOWN = 20
"""Names that a message lists at most."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images of one split, a file each; an `otkd.data.source.Encoded`."""

    root: str
    paths: NDArray[np.bytes_]
    """(N,), below `root`, as the file system spells them"""
    labels: NDArray[np.int64]
    """(N,), 0 … K - 1"""

    def read(self, row: int) -> bytes:
        """The encoded image; `OSError` when it cannot be read."""
        with open(self.where(row), "rb") as file:
            return file.read()

    def where(self, row: int) -> str:
        """The file."""
        return os.path.join(self.root, os.fsdecode(self.paths[row]))


class File(NamedTuple):
    """An image file."""

    path: str
    """Below the root, parts joined by `/`."""
    size: int
    """In bytes."""


class Listing(NamedTuple):
    """The images of a data set."""

    classes: tuple[str, ...]
    """Names, in the order of labels."""
    train: ImageFiles
    test: ImageFiles
    digest: str
    """Sixteen hex digits of all paths and sizes."""
    stamps: dict[str, int]
    """Every folder, and every other file that was read → its time of change in ns."""


class Entry(NamedTuple):
    """What lies in a folder."""

    name: str
    folder: bool
    size: int
    """Of an image in bytes, else 0."""


@dataclass
class Scan:
    """Goes through the folders below `root`; names that begin with a dot count as not there."""

    root: Path
    stamps: dict[str, int] = field(default_factory=dict)
    """Every folder seen → its time of change in ns, before it was looked at."""

    def entries(self, folder: Path) -> list[Entry]:
        """Folders and images that lie in a folder, by name. Raises `DataError` when one is unreadable."""
        try:
            self.stamps[str(folder)] = folder.stat().st_mtime_ns
            with os.scandir(folder) as found:
                entries = [_entry(item) for item in found if not item.name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"{error.filename or folder}: cannot be read ({error.strerror or error}). "
                "Check its permissions and where it links to, or remove it."
            ) from error
        return sorted(entry for entry in entries if entry.folder or _is_image(entry.name))

    def images(self, folder: Path) -> list[File]:
        """Every image below a folder, by path."""
        below = folder.relative_to(self.root).as_posix()
        found: list[File] = []
        for name, is_folder, size in self.entries(folder):
            found += self.images(folder / name) if is_folder else [File(f"{below}/{name}", size)]
        return found

    def by_class(self, split: str) -> dict[str, list[File]]:
        """The images of `<root>/<split>/<class>/`, whose classes come in the order of their names.

        Raises:
            DataError: there is no class, an image lies outside of any, or a class has none.
        """
        folder = self.root / split
        entries = self.entries(folder)
        loose = [entry.name for entry in entries if not entry.folder]
        if loose:
            raise DataError(f"{folder}: {loose[0]} lies in no class folder; an image belongs into {split}/<class>/.")
        found = {entry.name: self.images(folder / entry.name) for entry in entries}
        empty = [name for name, files in found.items() if not files]
        if empty or not found:
            lacking = f"no image below {named(empty)}" if empty else "no class folders"
            raise DataError(
                f"{folder}: there is {lacking}. Each class is a folder {split}/<class>/ with images "
                f"({', '.join(EXTENSIONS)}); remove those that are no classes."
            )
        return found


def image_files(root: Path, by_label: Iterable[tuple[int, Iterable[File]]]) -> ImageFiles:
    """The files of each label, in the order given."""
    labelled = [(os.fsencode(file.path), label) for label, files in by_label for file in files]
    paths, labels = zip(*labelled, strict=True)
    return ImageFiles(str(root), np.array(paths, np.bytes_), np.array(labels, np.int64))


def labelled(root: Path, split: str, found: dict[str, list[File]], classes: tuple[str, ...]) -> ImageFiles:
    """The images of class folders, labelled by the classes of training. Raises `DataError` for a class not there."""
    strange = [name for name in found if name not in classes]
    if strange:
        raise DataError(
            f"{root / split}: train has no class {strange[0]!r}; it has {named(classes)}."
            f"{did_you_mean(strange[0], classes)}"
        )
    return image_files(root, ((classes.index(name), files) for name, files in found.items()))


def digest(files: Iterable[File]) -> str:
    """Sixteen hex digits of paths and sizes, whatever the order."""
    lines = sorted(os.fsencode(f"{path}\0{size}\n") for path, size in files)
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


def listed(request: Request, root: Path, make: Callable[[Path], Listing]) -> Listing:
    """The listing that is kept for a request, made anew when a folder has changed since.

    Args:
        request: with those options alone that the listing depends on.
        root: the folder that all images are below.
        make: lists the images below `root`.
    """
    root, file = root.absolute(), place(request) / "listing.npz"
    with locked(file.with_name(".listing.lock")):
        kept = _load(file, request, root)
        if kept is not None:
            return kept
        log.info("%s: listing the images below %s", request.name, root)
        made = make(root)
        try:
            _save(file, request, root, made)
        except StorageError as error:
            log.warning("%s: going on without a kept list of files: %s", request.name, error)
        return made


def own_folder(request: Request) -> Path:
    """The folder of a data set `<plug-in>/<folder>`: `<data_dir>/<folder>`.

    Raises:
        DataError: no data folder was named, or it has no such folder; lists those that it has.
    """
    plugin, data_dir, own = plugin_of(request.name), request.data_dir, request.own
    if data_dir is None:
        raise DataError(
            f"{request.name}: name the folder that {own or 'it'} lies in: --data-dir folder, DATA=folder for make, or "
            "OTKD_DATA_DIR=folder."
        )
    folder = data_dir / own
    if own in ("", ".") or ".." in Path(own).parts or Path(own).is_absolute() or not _is_folder(request.name, folder):
        there = folders_in(data_dir)
        raise DataError(
            f"{request.name}: there is no folder {own!r} in {data_dir}; it has {named(there)}. Write "
            f"{plugin}/<folder>, or name another data folder (--data-dir, DATA= for make, or OTKD_DATA_DIR)."
            f"{did_you_mean(own, there)}"
        )
    return folder


def _is_folder(name: str, folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError as error:
        raise DataError(
            f"{name}: {folder} cannot be read ({error.strerror or error}). Check its name and its permissions, or name "
            "another data folder (--data-dir, DATA= for make, or OTKD_DATA_DIR)."
        ) from error


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder; none where it cannot be read."""
    try:
        return sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))
    except OSError:
        return []


def named(names: Iterable[str]) -> str:
    """Names for a message, the first few of them."""
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more if every else "none"


def choose_test(name: str, chosen: str | None, there: Iterable[str], usual: tuple[str, ...]) -> str:
    """Which split is the test set: the chosen one, else the only usual one that is there.

    Raises:
        DataError: it is not there, or there are several; says how to choose.
    """
    every = [split for split in there if split != "train"]
    found = [split for split in usual if split in every] if chosen is None else [chosen]
    if len(found) > 1:
        raise DataError(f"{name}: {' and '.join(found)} are there; choose the test set: options: {{test: {found[0]}}}.")
    if not found or found[0] not in every:
        raise DataError(
            f"{name}: there is no {chosen or ' or '.join(usual)} to test on; beside train there is {named(every)}. "
            f"Name the test set: options: {{test: …}}.{did_you_mean(chosen or usual[0], every)}"
        )
    return found[0]


def _entry(item: os.DirEntry[str]) -> Entry:
    folder = item.is_dir()
    return Entry(item.name, folder, item.stat().st_size if not folder and _is_image(item.name) else 0)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _save(file: Path, request: Request, root: Path, made: Listing) -> None:
    meta = {
        "reader": reader(plugin_of(request.name)),
        "root": os.path.realpath(root),
        "classes": made.classes,
        "digest": made.digest,
        "stamps": {os.path.realpath(path): stamp for path, stamp in made.stamps.items()},
    }
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.array(json.dumps(meta)),
        "train_paths": made.train.paths,
        "train_labels": made.train.labels,
        "test_paths": made.test.paths,
        "test_labels": made.test.labels,
    }
    with atomic(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def _load(file: Path, request: Request, root: Path) -> Listing | None:
    """The kept listing, or None where there is none, it is of other folders, or one of them has changed."""
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            meta = json.loads(str(kept["meta"]))
            current = (reader(plugin_of(request.name)), os.path.realpath(root))
            if (meta["reader"], meta["root"]) != current or not _unchanged(meta["stamps"]):
                return None
            train, test = (
                ImageFiles(str(root), kept[f"{split}_paths"], kept[f"{split}_labels"]) for split in ("train", "test")
            )
            return Listing(tuple(meta["classes"]), train, test, meta["digest"], meta["stamps"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: the kept list of files is damaged (%s); making it anew", file, error)
        return None


def _unchanged(stamps: dict[str, int]) -> bool:
    try:
        return all(os.stat(path).st_mtime_ns == stamp for path, stamp in stamps.items())
    except OSError:
        return False
