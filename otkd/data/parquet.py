"""Images in the parquet layout of Hugging Face data sets: a column of encoded images and a column of labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data.source import Arrays, check_labels

MODES = {1: "L", 3: "RGB"}
"""Channels → PIL's mode."""


def read_parquet(files: list[Path], image: str, label: str, card: DataCard) -> Arrays:
    """Decode shards in the order given.

    Args:
        files: parquet files of one split.
        image: column of structs {bytes: an encoded PNG, path}.
        label: column of integers.
        card: says side, channels and classes.

    Raises:
        DataError: a file is damaged or has other columns (names the file), an image is broken or a label out of range
            (names file and row, counted from 0).
    """
    shards = [_read_file(file, image, label, card) for file in files]
    return Arrays(np.concatenate([s.images for s in shards]), np.concatenate([s.labels for s in shards]))


def _read_file(file: Path, image: str, label: str, card: DataCard) -> Arrays:
    table = _table(file, image, label)
    labels = table[label]
    if labels.null_count or not pa.types.is_integer(labels.type):
        raise DataError(
            f"{file}: column {label!r} is {labels.type} with {labels.null_count} empty rows; it should be integers."
        )
    labels_N = labels.to_numpy().astype(np.int64)
    check_labels(str(file), labels_N, card.classes)
    images_NHWC = np.empty((len(labels_N), card.side, card.side, card.channels), np.uint8)
    for row, cell in enumerate(table[image].to_pylist()):
        try:
            images_NHWC[row] = _decode(cell["bytes"], card)
        except Exception as error:  # PIL has a dozen ways to refuse a broken image
            raise DataError(f"{file}: row {row} holds no readable image ({error}). Get the file anew.") from error
    return Arrays(images_NHWC, labels_N)


def _table(file: Path, image: str, label: str) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            columns = parquet.schema_arrow.names
            if {image, label} <= set(columns):
                return parquet.read(columns=[image, label])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or incomplete ({error}). Get the file anew.") from error
    raise DataError(f"{file}: has columns {', '.join(columns)}; expected {image} and {label}.")


def _decode(encoded: bytes, card: DataCard) -> NDArray[np.uint8]:
    """One image (H, W, C)."""
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as picture:
        if picture.size != (card.side, card.side):
            raise ValueError(f"it is {picture.width} × {picture.height} pixels, not {card.side} × {card.side}")
        mode = MODES[card.channels]
        pixels = picture if picture.mode == mode else picture.convert(mode)
        return np.asarray(pixels).reshape(card.side, card.side, card.channels)
