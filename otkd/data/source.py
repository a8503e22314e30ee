"""What a data set's file provides, and the check that it is what its card says.

A file `otkd/data/<name>.py` has a head (see `otkd.core.plugins`): a `CARD`, and before it, where the data set has
settings of its own, their class `Options` and a function `card(options)`, the card with those settings. Below stand

    sources(request) -> list[Path]       files it would read; none when it needs none or must download first
    read(request) -> RawSplits           every image, decoded; for sets that are held in memory, or
    index(request) -> EncodedSplits      every image as it lies on disk; for sets that are streamed (`card.streamed`)
    survey(request) -> Found             what there is; for sets of the user's own (`SurveyedOptions`)

Each raises `DataError`, which says every way to get the images.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from otkd.core.cards import DataCard
from otkd.core.errors import DataError


class Arrays(NamedTuple):
    """The images of one split, decoded."""

    images: NDArray[np.uint8]
    """(N, H, W, C)"""
    labels: NDArray[np.int64]
    """(N,), 0 … K - 1"""


class RawSplits(NamedTuple):
    """A data set that is held in memory: every training and every test image."""

    train: Arrays
    test: Arrays


class Encoded(Protocol):
    """The images of one split as they are on disk; goes to worker processes, so it holds no open file."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), 0 … K - 1"""
        ...

    def read(self, row: int) -> bytes:
        """The encoded image (JPEG, PNG, …); `OSError` when it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The file, and the place in it, for messages."""
        ...


class EncodedSplits(NamedTuple):
    """A data set that is streamed."""

    train: Encoded
    test: Encoded


def check(name: str, raw: RawSplits, card: DataCard) -> None:
    """Hold what was read against the card: counts, shapes, types, labels.

    Raises:
        DataError: with the first difference.
    """
    for split, arrays, count in (("train", raw.train, card.train), ("test", raw.test, card.test)):
        images, labels = arrays
        check_count(name, split, len(images), len(labels), count)
        if images.dtype != np.uint8 or images.shape[1:] != (card.side, card.side, card.channels):
            raise DataError(
                f"{name}: {split} images are {images.dtype} of shape {images.shape[1:]}; they should be uint8 of shape "
                f"{(card.side, card.side, card.channels)}."
            )
        check_labels(f"{name}, {split}", labels, card.classes)


def check_encoded(name: str, encoded: EncodedSplits, card: DataCard) -> None:
    """Hold an index against the card: counts and labels.

    Raises:
        DataError: with the first difference.
    """
    for split, images, count in (("train", encoded.train, card.train), ("test", encoded.test, card.test)):
        check_count(name, split, len(images.labels), len(images.labels), count)
        check_labels(f"{name}, {split}", images.labels, card.classes)


def check_count(name: str, split: str, images: int, labels: int, count: int) -> None:
    """Raise `DataError` unless there are `count` images and labels."""
    if images != count or labels != count:
        raise DataError(
            f"{name}: found {images:,} {split} images with {labels:,} labels; there should be {count:,} "
            f"of each. Is a file missing or incomplete?"
        )


def check_labels(where: str, labels: NDArray[np.int64], classes: int) -> None:
    """Raise `DataError` with the first row whose label is not among 0 … classes - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"{where}: row {wrong[0]} has label {labels[wrong[0]]}; labels are 0 to {classes - 1}.")
