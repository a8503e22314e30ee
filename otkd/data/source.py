"""What a data set's file provides, and the check that it is what its card says.

A file `otkd/data/<name>.py` has a `CARD` (its head), and two functions:

    sources(data_dir, download_to) -> list[Path]   files it would read; none when it needs none or must download first
    read(data_dir, download_to) -> RawSplits       the images; `DataError` says every way to get them

`data_dir` is the user's data folder or None; `download_to` a folder of ours in which downloads are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from otkd.core.cards import DataCard
from otkd.core.errors import DataError


class Arrays(NamedTuple):
    """The images of one split as they are on disk."""

    images: NDArray[np.uint8]
    """(N, H, W, C)"""
    labels: NDArray[np.int64]
    """(N,), 0 … K - 1"""


class RawSplits(NamedTuple):
    """A data set: every training and every test image."""

    train: Arrays
    test: Arrays


def check(name: str, raw: RawSplits, card: DataCard) -> None:
    """Hold what was read against the card: counts, shapes, types, labels.

    Raises:
        DataError: with the first difference.
    """
    for split, arrays, count in (("train", raw.train, card.train), ("test", raw.test, card.test)):
        images, labels = arrays
        if len(images) != count or len(labels) != count:
            raise DataError(
                f"{name}: found {len(images):,} {split} images with {len(labels):,} labels; there should be {count:,} "
                f"of each. Is a file missing or incomplete?"
            )
        if images.dtype != np.uint8 or images.shape[1:] != (card.side, card.side, card.channels):
            raise DataError(
                f"{name}: {split} images are {images.dtype} of shape {images.shape[1:]}; they should be uint8 of shape "
                f"{(card.side, card.side, card.channels)}."
            )
        check_labels(f"{name}, {split}", labels, card.classes)


def check_labels(where: str, labels: NDArray[np.int64], classes: int) -> None:
    """Raise `DataError` with the first row whose label is not among 0 … classes - 1."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"{where}: row {wrong[0]} has label {labels[wrong[0]]}; labels are 0 to {classes - 1}.")
