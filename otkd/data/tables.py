"""Images in the parquet layout of Hugging Face data sets: a column of encoded images and a column of labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data.decode import FORMATS, MODES
from otkd.data.source import Arrays, check_labels

ROWS = 256
"""Rows that are in memory at a time, encoded."""


def read_parquet(files: list[Path], image: str, label: str, card: DataCard) -> Arrays:
    """Decode shards in the order given.

    Args:
        files: parquet files of one split.
        image: column of structs {bytes: an encoded image, path}, or of encoded images.
        label: column of integers.
        card: says side, channels and classes.

    Raises:
        DataError: a file is damaged or has other columns (names the file), an image is broken or a label out of range
            (names file and row, counted from 0).
    """
    for file in files:
        check_columns(file, image, label)
    labels_N = np.concatenate([_integers(file, label, card.classes) for file in files])
    return Arrays(read_images(files, image, len(labels_N), card, lambda encoded: _fitted(encoded, card)), labels_N)


def schema(file: Path) -> pa.Schema:
    """Columns and their types. Raises `DataError` where the file is damaged."""
    with _opened(file) as parquet:
        return parquet.schema_arrow


def check_columns(file: Path, *wanted: str) -> None:
    """Raise `DataError` unless the file has these columns."""
    lacking = _lacking(file, wanted)
    if lacking:
        raise DataError(f"{file}: {lacking}.")


def misfit(file: Path, *wanted: str) -> str:
    """Why a file is none of a data set with these columns; nothing where it has them, or is damaged."""
    try:
        return _lacking(file, wanted)
    except DataError:
        return ""


def _lacking(file: Path, wanted: tuple[str, ...]) -> str:
    columns = schema(file).names
    return "" if set(wanted) <= set(columns) else f"has columns {', '.join(columns)}; expected {' and '.join(wanted)}"


def column(file: Path, name: str) -> pa.ChunkedArray:
    """A column as a whole, every row of it filled; its type without dictionary.

    Raises:
        DataError: the file is damaged, or a row is empty; names it.
    """
    with _opened(file) as parquet:
        values = parquet.read(columns=[name])[name]
    if values.null_count:
        row = pc.index(values.is_null(), True).as_py()
        raise DataError(f"{file}: row {row} of column {name!r} is empty. Fill it, or leave the row out.")
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def encoded_images(file: Path, image: str) -> Iterator[bytes | None]:
    """The encoded images of a column of structs {bytes, path} or of bytes; None where there is none."""
    with _opened(file) as parquet:
        for batch in parquet.iter_batches(ROWS, columns=[image]):
            cells = batch.column(0)
            yield from (pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells).to_pylist()


def read_images(
    files: list[Path], image: str, count: int, card: DataCard, decode: Callable[[bytes], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Decode `count` images into one array (N, H, W, C).

    Args:
        decode: an encoded image → its pixels (H, W, C); may raise what it likes.

    Raises:
        DataError: an image is broken; names file and row. A `DataError` of `decode` keeps its own words.
    """
    images_NHWC = np.empty((count, card.side, card.side, card.channels), np.uint8)
    place = iter(range(count))
    for file in files:
        for row, encoded in enumerate(encoded_images(file, image)):
            try:
                images_NHWC[next(place)] = decode(encoded or b"")
            except DataError as error:
                raise DataError(f"{file}: row {row}: {error}") from error
            except Exception as error:  # PIL has a dozen ways to refuse a broken image
                raise DataError(f"{file}: row {row} holds no readable image ({error}). Get the file anew.") from error
    return images_NHWC


def open_image(encoded: bytes) -> Image.Image:
    """A picture whose head has been read, to be used in a `with` block; errors are PIL's."""
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


def pixels(picture: Image.Image, channels: int) -> NDArray[np.uint8]:
    """A picture as (H, W, C)."""
    mode = MODES[channels]
    same = picture if picture.mode == mode else picture.convert(mode)
    return np.asarray(same).reshape(picture.height, picture.width, channels)


def _fitted(encoded: bytes, card: DataCard) -> NDArray[np.uint8]:
    with open_image(encoded) as picture:
        if picture.size != (card.side, card.side):
            raise ValueError(f"it is {picture.width} × {picture.height} pixels, not {card.side} × {card.side}")
        return pixels(picture, card.channels)


def _integers(file: Path, label: str, classes: int) -> NDArray[np.int64]:
    """The labels of a file, within 0 … classes - 1."""
    kind = schema(file).field(label).type
    if not pa.types.is_integer(kind):
        raise DataError(f"{file}: column {label!r} is {kind}; it should be integers.")
    labels_N = column(file, label).to_numpy().astype(np.int64)
    check_labels(str(file), labels_N, classes)
    return labels_N


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged or incomplete ({error}). Get the file anew.") from error
