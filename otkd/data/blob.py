"""Encoded images of a split, copied one after the other into one file, so that each is one read."""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otkd.core.layout import atomic
from otkd.core.locks import locked

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Blob:
    """The images of one split; an `otkd.data.source.Encoded`."""

    file: str
    offsets: NDArray[np.int64]
    """(N + 1,): where each image begins in `file`, and the end of the last"""
    labels: NDArray[np.int64]
    """(N,), 0 … K - 1"""
    origins: tuple[str, ...]
    """The files that they were copied from"""
    starts: NDArray[np.int64]
    """The first row of each of `origins`"""
    sha256: str
    """Of `file`, when it was written"""

    def read(self, row: int) -> bytes:
        """The encoded image, empty where the source has none; `OSError` when it cannot be read."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        with open(self.file, "rb", buffering=0) as stream:
            stream.seek(start)
            encoded = stream.read(end - start)
        if len(encoded) < end - start:
            raise OSError(f"{self.file} ends within the image; remove it, and it is made anew")
        return encoded

    def intact(self) -> bool:
        """Whether the copy is still what was written."""
        try:
            with open(self.file, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256
        except OSError:
            return False

    def where(self, row: int) -> str:
        """The file that it was copied from, and its row there."""
        origin = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.origins[origin]}, row {row - self.starts[origin]}"


class Copy(NamedTuple):
    """The images of one split in the cache."""

    file: Path
    offsets: NDArray[np.int64]
    """(N + 1,): where each image begins, and the end of the last"""
    sha256: str


def kept_blobs(
    folder: Path, source: str, made_from: str, images: Mapping[str, Callable[[], Iterable[bytes | None]]]
) -> dict[str, Copy]:
    """Each split's copy, made anew unless there are whole copies from the same source.

    Files carry `source` and `made_from` in their names, and the offsets are written last: nobody reads half of a copy,
    or another. Copies of other sources stay, as they may be in use.

    Args:
        folder: in the cache.
        source: stands for the place of the source.
        made_from: stands for what is there, and changes with it.
        images: split → its encoded images, in order.

    Raises:
        StorageError: there is no room for the copy.
    """
    files = {split: folder / f"{split}-{source}-{made_from}.bin" for split in images}
    table = folder / f"offsets-{source}-{made_from}.npz"
    with locked(folder / ".copy.lock"):
        copies = _load(table, files)
        if copies is None:
            log.info("copying the encoded images to %s", folder)
            _remove(folder.glob(".*.bin.*.tmp"))  # of processes that were killed
            copies = {split: _write(files[split], encoded()) for split, encoded in images.items()}
            _save(table, copies)
            older = (*folder.glob(f"*-{source}-*.bin"), *folder.glob(f"offsets-{source}-*.npz"))
            _remove(file for file in older if file not in {table, *files.values()})
    return copies


def _save(table: Path, copies: Mapping[str, Copy]) -> None:
    arrays: dict[str, NDArray[Any]] = {split: copy.offsets for split, copy in copies.items()}
    sums = {f"{split}_sha256": np.array(copy.sha256) for split, copy in copies.items()}
    with atomic(table) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays, **sums)


def _load(table: Path, files: Mapping[str, Path]) -> dict[str, Copy] | None:
    """The copies, if they are as long as their offsets say; None where anything is missing or damaged."""
    if not table.exists():
        return None
    try:
        with np.load(table, allow_pickle=False) as stored:
            copies = {split: Copy(file, stored[split], str(stored[f"{split}_sha256"])) for split, file in files.items()}
        whole = all(copy.file.stat().st_size == copy.offsets[-1] for copy in copies.values())
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: the copied images are damaged (%s); copying them anew", table.parent, error)
        return None
    return copies if whole else None


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _write(file: Path, images: Iterable[bytes | None]) -> Copy:
    """Write images one after the other.

    Raises:
        StorageError: the disk refuses.
    """
    sizes, checksum = [0], hashlib.sha256()
    with atomic(file) as temporary, temporary.open("wb") as stream:
        for image in images:
            sizes.append(stream.write(image or b""))
            checksum.update(image or b"")
    return Copy(file, np.cumsum(sizes, dtype=np.int64), checksum.hexdigest())
