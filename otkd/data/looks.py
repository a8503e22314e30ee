"""Every image of a data set, decoded: what each looks like, and why some cannot be."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from otkd.core.errors import DataError
from otkd.data.decode import FORMATS, decode, reason
from otkd.data.source import Encoded, EncodedSplits, RawSplits

CHUNK = 32
"""Images that a worker process decodes at a time."""

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how many images of it are done, and of how many (None: not known)."""


class Look(NamedTuple):
    """One image, decoded."""

    mode: str
    """As PIL names it: `RGB`, `L` (grey), …"""
    size: tuple[int, int]
    """Width and height in pixels."""
    digest: bytes
    """Of its bytes; empty where they could not be read."""
    fault: str = ""
    """Why it could not be decoded."""


def in_memory(raw: RawSplits) -> list[list[Look]]:
    """Looks at the images of both splits, which are decoded already."""
    return [[_look_at_pixels(image) for image in split.images] for split in (raw.train, raw.test)]


def _look_at_pixels(image_HWC: NDArray[np.uint8]) -> Look:
    height, width = image_HWC.shape[:2]
    return Look(
        "L" if image_HWC.shape[2] == 1 else "RGB", (width, height), _digest(np.ascontiguousarray(image_HWC).data)
    )


def on_disk(encoded: EncodedSplits, channels: int, workers: int, tell: Progress) -> list[list[Look]]:
    """Looks at the images of both splits, each decoded as training decodes it.

    Args:
        channels: what the images are to have once they are decoded.
        workers: processes that decode; 0 decodes in this one.
        tell: told how far it is.

    Raises:
        DataError: a process was killed.
    """
    task = _Task(encoded, channels)
    seen: list[list[Look]] = [[], []]
    chunks = [_Chunk(split, rows) for split in (0, 1) for rows in _parts(len(encoded[split].labels))]
    done = map(task.look_at, chunks) if not workers else _in_processes(task, chunks, workers)
    for (split, _), looks in zip(chunks, done, strict=True):
        seen[split] += looks
        tell(("train", "test")[split], len(seen[split]), len(encoded[split].labels))
    return seen


class _Chunk(NamedTuple):
    split: int
    rows: range


class _Task(NamedTuple):
    encoded: EncodedSplits
    channels: int

    def look_at(self, chunk: _Chunk) -> list[Look]:
        return [_look(self.encoded[chunk.split], row, self.channels) for row in chunk.rows]


def _parts(count: int) -> Iterator[range]:
    return (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _in_processes(task: _Task, chunks: list[_Chunk], workers: int) -> Iterator[list[Look]]:
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (task,)) as pool:
        try:
            yield from pool.map(_look_at, chunks)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed while it decoded images, for want of memory perhaps. Try --workers 1."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_mine: list[_Task] = []
"""In a worker process: what it works on."""


def _begin(task: _Task) -> None:
    """A worker process starts; Ctrl-C is for its parent to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mine[:] = [task]


def _look_at(chunk: _Chunk) -> list[Look]:
    (task,) = _mine
    return task.look_at(chunk)


def _look(encoded: Encoded, row: int, channels: int) -> Look:
    digest = b""
    try:
        content = encoded.read(row)
        digest = _digest(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            mode, size = picture.mode, picture.size
        decode(content, channels)
        return Look(mode, size, digest)
    except Exception as error:  # the file system and PIL have a dozen ways to refuse
        return Look("", (0, 0), digest, reason(error))


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
