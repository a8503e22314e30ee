"""Whether a data set is all there: its files, its counts and labels, and every image decoded."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from otkd.core import plugins
from otkd.core.cards import DataCard
from otkd.core.datasets import Request, plugin_of, request_for
from otkd.core.errors import DataError
from otkd.core.locks import locked
from otkd.core.trial import Data
from otkd.data import cache, looks, originals
from otkd.data.blob import Blob
from otkd.data.looks import Look, Progress
from otkd.data.source import Arrays, Encoded, EncodedSplits, RawSplits

MANY = 50
"""More source files than so many are counted, not listed: of folders, each image is read anyway."""
SLICE = 4096
"""Images that are compared at a time."""


class SourceFile(NamedTuple):
    """A file that the images come from."""

    path: Path
    bytes: int
    sha256: str
    """Empty where there are more than `MANY` files."""


class Count(NamedTuple):
    """Images of one split, and of its classes."""

    split: str
    images: int
    expected: int
    classes: int
    """Classes with an image."""
    fewest: int
    """Images of the class with fewest."""
    most: int
    """Images of the class with most."""


@dataclass(frozen=True)
class Findings:
    """What was found of a data set."""

    name: str
    classes: int
    files: tuple[SourceFile, ...] = ()
    counts: tuple[Count, ...] = ()
    modes: tuple[tuple[str, int], ...] = ()
    """PIL's modes and how many images have each, the most frequent first."""
    sizes: tuple[tuple[int, int], ...] = ()
    """The smallest and the largest image by area, (width, height)."""
    unreadable: tuple[str, ...] = ()
    """File and reason of every image that cannot be decoded."""
    problems: tuple[str, ...] = ()
    """Everything else that is wrong."""
    warnings: tuple[str, ...] = ()
    """What is worth knowing, and may be meant."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not self.unreadable

    @property
    def verdict(self) -> str:
        """All in one line."""
        if not self.ok:
            count = len(self.problems) + len(self.unreadable)
            return f"{self.name}: {count:,} problem{'s' * (count != 1)}, see above"
        train, test = self.counts
        return (
            f"{self.name}: {train.images:,} training and {test.images:,} test images, {self.classes:,} classes, "
            "every one decoded"
        )


def verify(
    data: Data, data_dir: Path | None, cache_dir: Path, *, workers: int = 0, progress: Progress | None = None
) -> Findings:
    """Read a data set from its source files, not from the cache, and hold it against its card and the cache.

    Args:
        data: name and options; a set of the user's own has passed through `otkd.core.datasets.survey`.
        data_dir: the user's data folder, or None.
        cache_dir: our folder for what is made of the images.
        workers: processes that decode streamed images; 0 decodes in this one.
        progress: told how far it is.
    """
    start, tell = time.perf_counter(), progress or _silent
    card, request = data.card, request_for(data, data_dir, cache_dir)
    plugin = plugins.load("data", plugin_of(data.name))
    tell("reading", 0, None)
    try:
        with locked(cache.place(request) / ".lock"):
            raw: RawSplits | EncodedSplits = plugin.index(request) if card.streamed else plugin.read(request)
            files: list[Path] = plugin.sources(request)
        found = _examined(request, card, raw, files, workers, tell)
    except DataError as error:
        found = Findings(data.name, card.classes, problems=(str(error),))
    return replace(found, seconds=time.perf_counter() - start)


def _examined(
    request: Request,
    card: DataCard,
    raw: RawSplits | EncodedSplits,
    files: list[Path],
    workers: int,
    tell: Progress,
) -> Findings:
    problems, warnings = _label_faults(raw, card)
    if isinstance(raw, RawSplits):
        misshapen = list(_shape_faults(raw, card))
        problems += [*misshapen, *_cache_faults(request, raw, files)]
        warnings += _stale_cache(request, files)
        seen = [[], []] if misshapen else looks.in_memory(raw)
    else:
        problems += _copy_faults(raw)
        seen = looks.on_disk(raw, card.channels, workers, tell)
    readable = [look for split in seen for look in split if not look.fault]
    return Findings(
        request.name,
        card.classes,
        files=tuple(_source_files(files, tell)),
        counts=tuple(_counts(raw, card)),
        modes=tuple(Counter(look.mode for look in readable).most_common()),
        sizes=_extremes({look.size for look in readable}),
        unreadable=tuple(_unreadable(raw, seen)),
        problems=tuple(problems),
        warnings=(*warnings, *_shared(seen)),
    )


def whereabouts(request: Request, card: DataCard) -> str:
    """Where a data set's images are, in a few words. Looks for files, and opens one at most."""
    if (cache.place(request) / "meta.json").exists():
        return "in the cache"
    plugin = plugins.load("data", plugin_of(request.name))
    try:
        files = plugin.sources(request)
    except DataError:
        return "incomplete (otkd data verify)"
    if files:
        return "downloaded" if files[0].is_relative_to(request.downloads) else "in the data folder"
    if getattr(plugin, "originals", None) is originals:
        return "to be downloaded"
    return "to be put in the data folder" if card.streamed else "not read yet"


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def _splits(raw: RawSplits | EncodedSplits, card: DataCard) -> list[tuple[str, Arrays | Encoded, int]]:
    """(name, images, how many there should be) of both splits."""
    return [("train", raw.train, card.train), ("test", raw.test, card.test)]


def _counts(raw: RawSplits | EncodedSplits, card: DataCard) -> Iterator[Count]:
    for split, images, expected in _splits(raw, card):
        per_class = _per_class(images.labels, card)
        there = int((per_class > 0).sum())
        yield Count(split, len(images.labels), expected, there, int(per_class.min()), int(per_class.max()))


def _per_class(labels: NDArray[np.int64], card: DataCard) -> NDArray[np.int64]:
    """Images of each class; labels out of range belong to none."""
    return np.bincount(labels[(labels >= 0) & (labels < card.classes)], minlength=card.classes)


def _label_faults(raw: RawSplits | EncodedSplits, card: DataCard) -> tuple[list[str], list[str]]:
    """What is wrong with counts and labels, and what may be meant."""
    problems: list[str] = []
    warnings: list[str] = []
    for split, images, expected in _splits(raw, card):
        labels = images.labels
        if len(labels) != expected:
            problems.append(f"{split}: there are {len(labels):,} images; there should be {expected:,}.")
        outside = np.flatnonzero((labels < 0) | (labels >= card.classes))
        if len(outside):
            first = f"row {outside[0]:,} has label {labels[outside[0]]}"
            allowed = f"labels are 0 to {card.classes - 1}"
            problems.append(f"{split}: {len(outside):,} labels are out of range, the first: {first}; {allowed}.")
        empty = np.flatnonzero(_per_class(labels, card) == 0)
        if len(empty):
            found = problems if split == "train" else warnings
            found.append(f"{split}: {len(empty):,} classes have no image, the first: class {empty[0]}.")
    return problems, warnings


def _shape_faults(raw: RawSplits, card: DataCard) -> Iterator[str]:
    expected = (card.side, card.side, card.channels)
    for split, (images, labels) in (("train", raw.train), ("test", raw.test)):
        if len(images) != len(labels):
            yield f"{split}: there are {len(images):,} images with {len(labels):,} labels."
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            yield f"{split}: images are {images.dtype} of shape {images.shape[1:]}; they should be uint8 of {expected}."


def _cache_faults(request: Request, raw: RawSplits, files: list[Path]) -> Iterator[str]:
    """A cache which claims to be of these files and holds something else."""
    folder = cache.place(request)
    if not (folder / "meta.json").exists() or list(_stale_cache(request, files)):
        return
    arrays: list[NDArray[Any]] = [*raw.train, *raw.test]
    try:
        entries = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["arrays"]
        kept = [np.load(folder / entries[key]["file"], mmap_mode="r", allow_pickle=False) for key in cache.ARRAYS]
        same = all(_equal(one, other) for one, other in zip(kept, arrays, strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        yield f"the cache {folder} holds other images than the files. Delete it; the next command makes it anew."


def _stale_cache(request: Request, files: list[Path]) -> Iterator[str]:
    """A cache of files or code that have changed since; it is not used any more."""
    if cache.stale(request, files):
        yield (
            f"the cache {cache.place(request)} is of other files, or was read by other code; the next command that "
            "needs it makes it anew."
        )


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays are the same, a part at a time, so that no third of their size is made."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    parts = (slice(start, start + SLICE) for start in range(0, len(one), SLICE))
    return all(np.array_equal(one[part], other[part]) for part in parts)


def _source_files(paths: list[Path], tell: Progress) -> Iterator[SourceFile]:
    files = [file for path in paths for file in _files_in(path)]
    for done, file in enumerate(files):
        if len(files) <= MANY:
            tell("checksums", done, len(files))
        yield SourceFile(file, file.stat().st_size, _sha256(file) if len(files) <= MANY else "")


def _files_in(path: Path) -> list[Path]:
    """A file itself, or the files anywhere in a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unreadable(raw: RawSplits | EncodedSplits, seen: list[list[Look]]) -> Iterator[str]:
    if not isinstance(raw, RawSplits):
        for split, looked in zip(raw, seen, strict=True):
            faults = [f"{split.where(row)}: {look.fault}" for row, look in enumerate(looked) if look.fault]
            if faults and _intact(split):
                yield from faults


def _copy_faults(encoded: EncodedSplits) -> Iterator[str]:
    """Copies in the cache that have changed since they were made; nothing can be said of their source."""
    for split in encoded:
        if isinstance(split, Blob) and not _intact(split):
            yield f"the copy {split.file} is damaged. Delete it; the next command makes it anew."


def _intact(split: Encoded) -> bool:
    return not isinstance(split, Blob) or split.intact()


def _shared(seen: list[list[Look]]) -> Iterator[str]:
    """Images of the test set that can be learnt by heart."""
    train, test = ([look.digest for look in split if look.digest] for split in seen)
    known = set(train)
    count = sum(digest in known for digest in test)
    if count:
        yield f"{count:,} of {len(test):,} test images are among the training images, byte for byte."


def _extremes(sizes: set[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return (by_area[0], by_area[-1]) if by_area else ()
