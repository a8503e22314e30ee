"""The two forms in which Krizhevsky (2009) hands out CIFAR-10 and CIFAR-100: pickled batches, and records of bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data.pickles import read_plain_pickle
from otkd.data.source import Arrays, check_labels


def read_batches(files: list[Path], label: str, card: DataCard) -> Arrays:
    """The images of pickled dictionaries, `data` (N, 3072) and a list of labels, file after file.

    Args:
        files: the batches of one split.
        label: the key of the labels.
        card: says side, channels and classes.

    Raises:
        DataError: a file is damaged or holds something else (names it), or a label is out of range (names the row).
    """
    return _joined([_read_batch(file, label, card) for file in files])


def read_records(files: list[Path], label_bytes: int, card: DataCard) -> Arrays:
    """The images of binary files: for each image some bytes of labels, the last of which counts, and then its pixels.

    Args:
        files: the files of one split.
        label_bytes: how many bytes of labels precede each image.
        card: says side, channels and classes.

    Raises:
        DataError: a file ends within an image (names it), or a label is out of range (names the row).
    """
    return _joined([_read_records(file, label_bytes, card) for file in files])


def _joined(parts: list[Arrays]) -> Arrays:
    return Arrays(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def _read_batch(file: Path, label: str, card: DataCard) -> Arrays:
    content = read_plain_pickle(file)
    try:
        images_NHWC = _channels_last(np.asarray(content["data"]), card)
        labels = np.asarray(content[label])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{file}: it does not hold data and {label} ({error!r}). Get the file anew.") from error
    if images_NHWC.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.shape != images_NHWC.shape[:1]:
        raise DataError(
            f"{file}: {len(images_NHWC)} images of {images_NHWC.dtype} with {label} {labels.dtype} of shape "
            f"{labels.shape}; it should be uint8, and as many whole numbers. Get the file anew."
        )
    check_labels(str(file), labels.astype(np.int64), card.classes)
    return Arrays(images_NHWC, labels.astype(np.int64))


def _read_records(file: Path, label_bytes: int, card: DataCard) -> Arrays:
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file}: it cannot be read ({error.strerror or error}).") from error
    size = label_bytes + card.channels * card.side**2
    if not len(content) or len(content) % size:
        raise DataError(
            f"{file}: {len(content):,} bytes are not a whole number of images with {label_bytes} byte(s) of labels, "
            f"{size:,} bytes each. The file is incomplete or of another data set; get it anew."
        )
    records = content.reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int64)
    check_labels(str(file), labels, card.classes)
    return Arrays(_channels_last(records[:, label_bytes:], card), labels)


def _channels_last(pixels: NDArray[np.uint8], card: DataCard) -> NDArray[np.uint8]:
    images_NCHW = pixels.reshape(-1, card.channels, card.side, card.side)
    return np.ascontiguousarray(images_NCHW.transpose(0, 2, 3, 1))
