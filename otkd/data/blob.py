"""Encoded images of a split, copied one after the other into one file, so that each is one read."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

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

    def read(self, row: int) -> bytes:
        """The encoded image, empty where the source has none; `OSError` when it cannot be read."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        with open(self.file, "rb", buffering=0) as stream:
            stream.seek(start)
            encoded = stream.read(end - start)
        if len(encoded) < end - start:
            raise OSError(f"{self.file} ends within the image; remove it, and it is made anew")
        return encoded

    def where(self, row: int) -> str:
        """The file that it was copied from, and its row there."""
        origin = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.origins[origin]}, row {row - self.starts[origin]}"


def kept_blobs(
    folder: Path, made_from: str, images: Mapping[str, Callable[[], Iterable[bytes | None]]]
) -> dict[str, tuple[Path, NDArray[np.int64]]]:
    """Each split's copy and the offsets in it, made anew unless there are whole copies from the same source.

    Files carry `made_from` in their names, and the offsets are written last: nobody reads half of a copy, or another.

    Args:
        folder: in the cache.
        made_from: stands for the source, and changes with it.
        images: split → its encoded images, in order.

    Raises:
        StorageError: there is no room for the copy.
    """
    copies = {split: folder / f"{split}-{made_from}.bin" for split in images}
    table = folder / f"offsets-{made_from}.npz"
    with locked(folder / ".copy.lock"):
        offsets = _load_offsets(table, copies)
        if offsets is None:
            log.info("copying the encoded images to %s", folder)
            offsets = {split: _write(copies[split], encoded()) for split, encoded in images.items()}
            with atomic(table) as temporary, temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **offsets)
            _remove_all_but(folder, {table, *copies.values()})
    return {split: (copies[split], offsets[split]) for split in images}


def _load_offsets(table: Path, copies: Mapping[str, Path]) -> dict[str, NDArray[np.int64]] | None:
    """The offsets in copies that are as long as these say; None where anything is missing or damaged."""
    if not table.exists():
        return None
    try:
        with np.load(table, allow_pickle=False) as stored:
            offsets = {split: stored[split] for split in copies}
        whole = all(copy.stat().st_size == offsets[split][-1] for split, copy in copies.items())
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s: the copied images are damaged (%s); copying them anew", table.parent, error)
        return None
    return offsets if whole else None


def _remove_all_but(folder: Path, kept: set[Path]) -> None:
    for file in (*folder.glob("*.bin"), *folder.glob("offsets-*.npz")):
        if file not in kept:
            file.unlink(missing_ok=True)


def _write(file: Path, images: Iterable[bytes | None]) -> NDArray[np.int64]:
    """Write images one after the other; where each begins, and the end of the last (N + 1,).

    Raises:
        StorageError: the disk refuses.
    """
    sizes = [0]
    with atomic(file) as temporary, temporary.open("wb") as stream:
        sizes.extend(stream.write(image or b"") for image in images)
    return np.cumsum(sizes, dtype=np.int64)
