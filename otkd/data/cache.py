"""Decoded images, kept: one uint8 array per split, checksummed, mapped into memory.

The folder `place(request)` holds `.npy` files and `meta.json`, which names each with its SHA-256 and tells what they
were made from. An array file's name carries its checksum, and `meta.json` is written last: a reader never sees half of
an old and half of a new cache.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otkd.core import plugins
from otkd.core.cards import DataCard
from otkd.core.datasets import Request, plugin_of
from otkd.core.errors import DataError, StorageError
from otkd.core.layout import atomic, write_text
from otkd.core.locks import locked
from otkd.core.trial import digest
from otkd.data.source import Arrays, EncodedSplits, RawSplits, check, check_encoded

log = logging.getLogger(__name__)

HERE = Path(__file__).parent

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
MARK = "+"
"""Stands between a data set's name and the digest of its options."""
LONGEST = 200
"""Bytes of a data set's name in that of a folder; a longer one becomes a digest."""


def load(request: Request, card: DataCard) -> RawSplits:
    """The images of a data set, from the cache when it is sound and up to date, else read anew and cached.

    Args:
        request: a data set that is held in memory.
        card: what it should be.

    Raises:
        DataError: its images cannot be had, or are not what the card says.
    """
    name, plugin = request.name, plugins.load("data", plugin_of(request.name))
    folder = place(request)
    with locked(folder / ".lock"):
        made_from = _made_from(request, plugin.sources(request))
        cached = _load_cached(folder, made_from)
        if cached is not None:
            return cached
        start = time.perf_counter()
        raw: RawSplits = plugin.read(request)
        check(name, raw, card)
        log.info("%s: read %d images in %.1f s", name, card.train + card.test, time.perf_counter() - start)
        try:
            _save(folder, raw, _made_from(request, plugin.sources(request)))
        except StorageError as error:
            log.warning("%s: going on without a cache: %s", name, error)
        return raw


def index(request: Request, card: DataCard) -> EncodedSplits:
    """The images of a data set that is streamed, as they lie on disk. Errors as for `load`."""
    with locked(place(request) / ".lock"):
        encoded: EncodedSplits = plugins.load("data", plugin_of(request.name)).index(request)
    check_encoded(request.name, encoded, card)
    return encoded


def place(request: Request) -> Path:
    """The folder of what is kept of a data set with these options; no two sets share one."""
    aside = {"found", *getattr(request.options, "of_the_card", ())}
    chosen = request.options.model_dump(mode="json", exclude_defaults=True, exclude=aside)
    suffix = f"{MARK}{digest(chosen)[:8]}" if chosen else ""
    return request.cache_dir / (folder_name(request.name) + suffix)


def folder_name(name: str) -> str:
    """A data set's name as that of a folder: `parquet%2Fpets`; another one for each, and without `MARK`."""
    spelt = name
    for letter in ("%", "/", MARK):
        spelt = spelt.replace(letter, f"%{ord(letter):02X}")
    return spelt if len(os.fsencode(spelt)) <= LONGEST else f"{plugin_of(name)}%{digest(name)}"


def reader(plugin: str) -> str:
    """Changes with the code that reads a data set: its plug-in, and whatever that imports from this folder."""
    files: set[Path] = set()
    ahead = [plugins.source("data", plugin)]
    while ahead:
        file = ahead.pop()
        if file not in files:
            files.add(file)
            ahead += _imported(file)
    code = [file.read_bytes() for file in sorted(files, key=lambda file: file.name)]
    return hashlib.sha256(b"".join(code)).hexdigest()


def _imported(file: Path) -> list[Path]:
    """The files of this folder that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition("otkd.data")
            if not package:
                names |= {module[1:]} if module else {alias.name for alias in node.names}
    return [path for path in (HERE / f"{name}.py" for name in names if name) if path.is_file()]


def stamps(files: Iterable[Path]) -> list[list[str | int]]:
    """Where each file lies, however it was spelt, its size, and its time of change in ns."""
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def stale(request: Request, files: list[Path]) -> bool:
    """Whether there is a cache which `load` passes over, because its source or the code that reads it has changed."""
    try:
        meta = json.loads((place(request) / "meta.json").read_text(encoding="utf-8"))
        return not _up_to_date(meta["made_from"], _made_from(request, files))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def outdated(request: Request) -> bool:
    """`stale`, of the files that are there now."""
    return stale(request, plugins.load("data", plugin_of(request.name)).sources(request))


def _made_from(request: Request, files: list[Path]) -> dict[str, Any]:
    return {"reader": reader(plugin_of(request.name)), "files": stamps(files)}


def _load_cached(folder: Path, made_from: dict[str, Any]) -> RawSplits | None:
    """The cached images, or None (with a warning, unless there is no cache yet)."""
    if not (folder / "meta.json").exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if not _up_to_date(meta["made_from"], made_from):
            log.warning("%s: the source files or the code that reads them have changed; reading them anew", folder)
            return None
        train_images, train_labels, test_images, test_labels = (_open(folder, meta["arrays"][key]) for key in ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        log.warning("%s: the cache is damaged (%s); reading the source anew", folder, error)
        return None
    return RawSplits(Arrays(train_images, train_labels), Arrays(test_images, test_labels))


def _up_to_date(cached: dict[str, Any], current: dict[str, Any]) -> bool:
    """Source files that are gone (a drive unplugged, another shell without OTKD_DATA_DIR) do not make a cache stale."""
    return cached["reader"] == current["reader"] and (cached["files"] == current["files"] or not current["files"])


def _open(folder: Path, entry: dict[str, str]) -> NDArray[Any]:
    """Map one array into memory (copy on write: nothing reaches the file) after checking its checksum."""
    array = np.load(folder / entry["file"], mmap_mode="c", allow_pickle=False)
    if _checksum(array) != entry["sha256"]:
        raise DataError(f"{entry['file']} does not have its checksum")
    return array


def _checksum(array: NDArray[Any]) -> str:
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + hashlib.sha256(np.ascontiguousarray(array).data).digest()).hexdigest()


def _save(folder: Path, raw: RawSplits, made_from: dict[str, Any]) -> None:
    arrays: list[NDArray[Any]] = [raw.train.images, raw.train.labels, raw.test.images, raw.test.labels]
    entries = {key: _save_array(folder, key, array) for key, array in zip(ARRAYS, arrays, strict=True)}
    write_text(folder / "meta.json", json.dumps({"made_from": made_from, "arrays": entries}, indent=1))
    kept = {entry["file"] for entry in entries.values()}
    for stale in folder.glob("*.npy"):
        if stale.name not in kept:
            stale.unlink(missing_ok=True)


def _save_array(folder: Path, key: str, array: NDArray[Any]) -> dict[str, str]:
    checksum = _checksum(array)
    file = f"{key}-{checksum[:16]}.npy"
    with atomic(folder / file) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    return {"file": file, "sha256": checksum}
