"""SVHN in both layouts, with and without the extra images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from otkd.core import datasets, plugins
from otkd.core.augment import Augment
from otkd.core.errors import DataError
from otkd.core.trial import Data
from otkd.data import cache, svhn
from otkd.data.source import Arrays, RawSplits

COUNTS = {"train": 7, "extra": 11, "test": 5}


def write_mat(file: Path, arrays: Arrays, **other: object) -> None:
    """Truth: the published description; X(:, :, :, i) is image i, y(i) its label, and the digit 0 has label 10."""
    y = np.where(arrays.labels == 0, 10, arrays.labels).astype(np.uint8)[:, None]
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"X": arrays.images.transpose(1, 2, 3, 0), "y": y, **other}, do_compression=True)


@pytest.fixture
def small(layouts: Any) -> dict[str, Arrays]:
    made = {split: layouts.random_images(n, seed, classes=10) for seed, (split, n) in enumerate(COUNTS.items())}
    made["train"].labels[:3] = 0, 9, 1
    return made


def write_mats(base: Path, small: dict[str, Arrays], layouts: Any) -> None:
    for split, arrays in small.items():
        write_mat(base / f"{split}_32x32.mat", arrays)


def write_parquets(base: Path, small: dict[str, Arrays], layouts: Any) -> None:
    for split, arrays in small.items():
        file = base / "cropped_digits" / f"{split}-00000-of-00001.parquet"
        layouts.parquet(file, arrays, columns=("image", "label"))


def joined(*parts: Arrays) -> Arrays:
    return Arrays(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


@pytest.fixture
def read(ask: Any) -> Any:
    return lambda data_dir, **options: svhn.read(ask("svhn", data_dir, **options))


@pytest.mark.parametrize("deeper", ["", "svhn"])
@pytest.mark.parametrize("write", [write_mats, write_parquets])
def test_every_layout(
    ask: Any, read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, write: Any, deeper: str
) -> None:
    write(tmp_path / deeper, small, layouts)
    layouts.assert_same(read(tmp_path), RawSplits(small["train"], small["test"]))
    layouts.assert_same(read(tmp_path, extra=True), RawSplits(joined(small["train"], small["extra"]), small["test"]))
    assert [len(svhn.sources(ask("svhn", tmp_path, extra=extra))) for extra in (False, True)] == [2, 3]


def test_images_lie_in_memory_row_by_row(read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any) -> None:
    write_mats(tmp_path, small, layouts)
    assert read(tmp_path, extra=True).train.images.flags.c_contiguous


@pytest.mark.parametrize("write", [write_mats, write_parquets])
def test_missing_extra(read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, write: Any) -> None:
    write(tmp_path, {split: small[split] for split in ("train", "test")}, layouts)
    layouts.assert_same(read(tmp_path), RawSplits(small["train"], small["test"]))
    with pytest.raises(DataError, match=r"but no extra[^;]*; all are needed\. .*or leave out `extra: true`"):
        read(tmp_path, extra=True)


def test_missing_test_split(read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any) -> None:
    write_mats(tmp_path, {"train": small["train"]}, layouts)
    with pytest.raises(DataError, match=r"has train_32x32\.mat but no test_32x32\.mat"):
        read(tmp_path)


def test_extra_is_an_option_of_planning() -> None:
    with_extra = Data(name="svhn", options={"extra": True})
    assert (Data(name="svhn").card.train, with_extra.card.train) == (73_257, 604_388)
    assert Data(name="svhn").augment == with_extra.augment == Augment(pad=4)
    head = plugins.head("data", "svhn")
    assert replace(with_extra.card, train=head.CARD.train) == head.CARD
    with pytest.raises(ValueError, match="extra"):
        Data(name="svhn", options={"extras": True})
    with pytest.raises(ValueError, match="extra"):
        datasets.configure("svhn", {"extra": 1})


def test_wrong_counts_are_refused(ask: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any) -> None:
    write_mats(tmp_path / "data", small, layouts)
    asked = ask("svhn", tmp_path / "data", extra=True)
    with pytest.raises(DataError, match="found 18 train images with 18 labels; there should be 604,388"):
        cache.load(asked, svhn.card(asked.options))


@pytest.mark.parametrize("label", [0, 11])
def test_label_out_of_range_names_file_and_row(
    read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, label: int
) -> None:
    write_mats(tmp_path, small, layouts)
    y = np.ones((11, 1), np.uint8)
    y[4] = label
    write_mat(tmp_path / "extra_32x32.mat", small["extra"], y=y)
    with pytest.raises(DataError, match=rf"extra_32x32\.mat: row 4 has label {label}; labels are 1 to 10"):
        read(tmp_path, extra=True)


@pytest.mark.parametrize("keep", [0, 50, 200, 2000, -100])
def test_truncated_file_is_named(read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, keep: int) -> None:
    write_mats(tmp_path, small, layouts)
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"test_32x32\.mat: .*Get the file anew"):
        read(tmp_path)


SQUARE = np.zeros((32, 32, 3, 5), np.uint8)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"X": SQUARE.astype(np.int16)}, r"X is int16 of shape \(32, 32, 3, 5\); it should be uint8"),
        ({"X": SQUARE.transpose(3, 0, 1, 2)}, r"X is uint8 of shape \(5, 32, 32, 3\)"),
        ({"X": SQUARE[..., 0]}, r"X is uint8 of shape \(32, 32, 3\)"),
        ({"X": SQUARE[..., :4]}, "y should hold 4 labels"),
        ({"y": np.ones((1, 5), np.uint8)}, "y should hold 5 labels"),
        ({"X": "text"}, "X is char"),
    ],
)
def test_other_content(
    read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, other: dict[str, object], message: str
) -> None:
    write_mats(tmp_path, small, layouts)
    write_mat(tmp_path / "test_32x32.mat", small["test"], **other)
    with pytest.raises(DataError, match=rf"test_32x32\.mat: {message}"):
        read(tmp_path)


@pytest.mark.parametrize(("kept", "message"), [("X", "y should hold 3"), ("y", "X is nothing")])
def test_a_variable_is_missing(
    read: Any, tmp_path: Path, small: dict[str, Arrays], layouts: Any, kept: str, message: str
) -> None:
    write_mats(tmp_path, small, layouts)
    content = {"X": SQUARE[..., :3], "y": np.ones((3, 1), np.uint8)}
    savemat(tmp_path / "train_32x32.mat", {kept: content[kept]})
    with pytest.raises(DataError, match=rf"train_32x32\.mat: {message}"):
        read(tmp_path)
