"""Parquet shards of a data set: which files, which columns, and the labels in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from otkd.core.errors import DataError, did_you_mean
from otkd.data.listing import choose_test, named
from otkd.data.tables import check_columns, column, schema

TEST = ("test", "validation", "val", "valid")
"""Usual names of the test set."""
DEEPER = ("", "data", "plain_text", "default")
"""Folders within a data set's own that may hold the shards."""


class Source(NamedTuple):
    """Where the images are."""

    root: Path
    """The folder that all shards are below."""
    train: list[Path]
    test: list[Path]
    image: str
    """Column of the images."""
    label: str
    """Column of the labels."""


class Labels(NamedTuple):
    """The labels of both splits."""

    classes: int
    train: list[NDArray[np.int64]]
    """(N,) of each file, 0 … K - 1"""
    test: list[NDArray[np.int64]]


def find_source(name: str, folder: Path, *, image: str | None, label: str, test: str | None) -> Source:
    """The shards of both splits, all of which have both columns.

    Args:
        name: of the data set, for messages.
        folder: the data set's own.
        image, test: None for the only one that can be.

    Raises:
        DataError: a split, a shard or a column is missing, or there are several to choose from.
    """
    root = next((folder / deeper for deeper in DEEPER if _shards(folder / deeper, "train")), None)
    if root is None:
        places = ", ".join(filter(None, DEEPER))
        raise DataError(
            f"{name}: there is no train-*.parquet, train.parquet or train/*.parquet in {folder} or its folders "
            f"{places}; there is {named(_names_in(folder))}."
        )
    test_files = _shards(root, choose_test(name, test, _splits(root), TEST))
    train_files = _shards(root, "train")
    _check_label(train_files[0], label)
    image = _image_column(train_files[0], image, label)
    for file in (*train_files, *test_files):
        check_columns(file, image, label)
    return Source(root, train_files, test_files, image, label)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}). Check its permissions.") from error


def _check_label(file: Path, label: str) -> None:
    columns = schema(file).names
    if label not in columns:
        raise DataError(
            f"{file}: has columns {', '.join(columns)}; expected {label}. Name the column of labels: "
            f"options: {{label: …}}.{did_you_mean(label, columns)}"
        )


def _splits(root: Path) -> list[str]:
    """Every split that a folder has shards of."""
    beside = {re.sub(r"(-.*)?\.parquet$", "", item.name) for item in root.glob("*.parquet")}
    return sorted(beside | {item.parent.name for item in root.glob("*/*.parquet")})


def _shards(root: Path, split: str) -> list[Path]:
    """The shards of a split in order. Raises `DataError` where one of `-00000-of-00002` and so on is missing."""
    for pattern in (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet"):
        files = sorted(root.glob(pattern))
        counted = [int(count) for file in files for count in re.findall(r"-\d+-of-(\d+)", file.stem)]
        if counted and len(files) != max(counted):
            raise DataError(f"{root}: {max(counted)} files {pattern} belong together; {len(files)} are there.")
        if files:
            return files
    return []


def _image_column(file: Path, wanted: str | None, label: str) -> str:
    columns = schema(file)
    possible = [item.name for item in columns if item.name != label and _may_be_images(item.type)]
    if wanted is None and len(possible) == 1:
        return possible[0]
    if wanted is not None and wanted in possible:
        return wanted
    what = f"column {wanted!r} has no images" if wanted else f"{len(possible)} columns may be the images"
    listed = ", ".join(f"{item.name} ({_short(item.type)})" for item in columns)
    raise DataError(
        f"{file}: {what}. Columns: {listed}. Name one of encoded images (binary, or a struct with bytes): "
        f"options: {{image: …}}.{did_you_mean(wanted, possible) if wanted else ''}"
    )


def _may_be_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _may_be_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _short(kind: pa.DataType) -> str:
    return str(kind) if len(str(kind)) <= 60 else f"{str(kind)[:60]}…"


def read_labels(source: Source) -> Labels:
    """Labels of both splits as numbers.

    Raises:
        DataError: labels are neither numbers from 0, each of which occurs in training, nor text; a row has none; or one
            of the test set does not occur in training.
    """
    train, test = ([_column(file, source.label) for file in files] for files in (source.train, source.test))
    for split, parts in (("train", train), ("test", test)):
        if not sum(map(len, parts)):
            raise DataError(f"{source.root}: the files of the {split} set have no rows.")
    if len({part.dtype.kind for part in (*train, *test)}) > 1:
        raise DataError(f"{source.root}: column {source.label!r} has text in one file and numbers in another.")
    values = np.unique(np.concatenate(train))
    _check_numbers(source, values)
    for file, part in zip(source.test, test, strict=True):
        _check_known(file, part, values)
    train_labels, test_labels = ([np.searchsorted(values, part) for part in parts] for parts in (train, test))
    return Labels(len(values), train_labels, test_labels)


def _check_numbers(source: Source, values: NDArray[Any]) -> None:
    if values.dtype.kind == "i" and not np.array_equal(values, np.arange(len(values))):
        wrong = next(value for place, value in enumerate(values) if place != value)
        raise DataError(
            f"{source.root}: column {source.label!r} of train has {len(values)} different numbers, {wrong} among them; "
            "labels are 0 to K - 1, and each occurs. Another column: options: {label: …}."
        )


def _check_known(file: Path, labels_N: NDArray[Any], values: NDArray[Any]) -> None:
    strange = np.flatnonzero(~np.isin(labels_N, values))
    if len(strange):
        raise DataError(
            f"{file}: row {strange[0]} has label {labels_N[strange[0]]!s}, which no training image has. A split "
            "without labels (-1, say) is no test set; choose another: options: {test: …}."
        )


def _column(file: Path, label: str) -> NDArray[Any]:
    """Labels as numbers (int64) or text (str)."""
    stored = schema(file).field(label).type
    kind = stored.value_type if pa.types.is_dictionary(stored) else stored
    if pa.types.is_integer(kind):
        return column(file, label).to_numpy().astype(np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return np.array(column(file, label).to_pylist(), dtype=np.str_)
    raise DataError(f"{file}: column {label!r} is {_short(kind)}; labels are whole numbers or text.")
