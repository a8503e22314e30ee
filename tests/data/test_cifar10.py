"""CIFAR-10 in all of its layouts. What is the same for CIFAR-100 is tested there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otkd.core.errors import DataError
from otkd.data import cifar10
from otkd.data.source import Arrays, RawSplits


@pytest.fixture
def small(layouts: Any) -> RawSplits:
    """Thirteen training images, which make batches of 3, 3, 3, 3 and 1."""
    return RawSplits(layouts.random_images(13, 0, classes=10), layouts.random_images(5, 1, classes=10))


@pytest.fixture
def read(ask: Any) -> Any:
    return lambda data_dir: cifar10.read(ask("cifar10", data_dir))


def parts(arrays: Arrays) -> list[Arrays]:
    return [Arrays(arrays.images[at : at + 3], arrays.labels[at : at + 3]) for at in range(0, 13, 3)]


def write_parquet(base: Path, raw: RawSplits, layouts: Any, folder: str = "plain_text") -> None:
    for split, arrays in zip(("train", "test"), raw, strict=True):
        layouts.parquet(base / folder / f"{split}-00000-of-00001.parquet", arrays, columns=("img", "label"))


def write_flat_parquet(base: Path, raw: RawSplits, layouts: Any) -> None:
    write_parquet(base, raw, layouts, "")


def write_batches(base: Path, raw: RawSplits, layouts: Any) -> None:
    folder = base / "cifar-10-batches-py"
    for number, part in enumerate(parts(raw.train), 1):
        layouts.original(folder / f"data_batch_{number}", part, "labels", batch_label=f"training batch {number} of 5")
    layouts.original(folder / "test_batch", raw.test, "labels")
    (folder / "batches.meta").write_bytes(b"not read")


def write_records(base: Path, raw: RawSplits, layouts: Any) -> None:
    for number, part in enumerate(parts(raw.train), 1):
        layouts.records(base / "cifar-10-batches-bin" / f"data_batch_{number}.bin", part)
    layouts.records(base / "cifar-10-batches-bin" / "test_batch.bin", raw.test)


@pytest.mark.parametrize("deeper", ["", "cifar10"])
@pytest.mark.parametrize(
    ("write", "files"), [(write_parquet, 2), (write_flat_parquet, 2), (write_batches, 6), (write_records, 6)]
)
def test_every_layout(
    ask: Any, read: Any, tmp_path: Path, small: RawSplits, layouts: Any, write: Any, files: int, deeper: str
) -> None:
    write(tmp_path / deeper, small, layouts)
    layouts.assert_same(read(tmp_path), small)
    assert len(cifar10.sources(ask("cifar10", tmp_path))) == files


@pytest.mark.parametrize("write", [write_batches, write_records])
def test_a_missing_batch_is_named(read: Any, tmp_path: Path, small: RawSplits, layouts: Any, write: Any) -> None:
    write(tmp_path, small, layouts)
    next(tmp_path.glob("cifar-10-*/data_batch_3*")).unlink()
    with pytest.raises(DataError, match=r"has data_batch_1.* but no data_batch_3(\.bin)?; all are needed"):
        read(tmp_path)


@pytest.mark.parametrize("write", [write_parquet, write_batches, write_records])
def test_a_label_out_of_range_names_file_and_row(
    read: Any, tmp_path: Path, small: RawSplits, layouts: Any, write: Any
) -> None:
    labels = small.train.labels.copy()
    labels[7] = 10
    write(tmp_path, RawSplits(Arrays(small.train.images, labels), small.test), layouts)
    with pytest.raises(DataError, match=r"(data_batch_3\S*: row 1|train-00000-of-00001\.parquet: row 7) has label 10"):
        read(tmp_path)


@pytest.mark.parametrize(("write", "file"), [(write_batches, "test_batch"), (write_records, "test_batch.bin")])
def test_a_truncated_batch_is_named(
    read: Any, tmp_path: Path, small: RawSplits, layouts: Any, write: Any, file: str
) -> None:
    write(tmp_path, small, layouts)
    path = next(tmp_path.rglob(file))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{file}: "):
        read(tmp_path)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar100_is_not_taken_for_cifar10(
    read: Any, tmp_path: Path, small: RawSplits, layouts: Any, below: str
) -> None:
    for split, arrays in zip(("train", "test"), small, strict=True):
        layouts.parquet(tmp_path / below / f"{split}-00000-of-00001.parquet", arrays)
    with pytest.raises(DataError, match="has columns img, fine_label, coarse_label; expected img and label"):
        read(tmp_path)
    write_batches(tmp_path, small, layouts)
    layouts.assert_same(read(tmp_path), small)


def test_pixels_keep_their_place(read: Any, tmp_path: Path, small: RawSplits, layouts: Any) -> None:
    """Truth: the format's description, 1,024 red bytes row by row, then green, then blue, after the label."""
    write_records(tmp_path, small, layouts)
    record = np.zeros(3073, np.uint8)
    record[0], record[1 + 2 * 32 + 5], record[1 + 1024 + 31] = 4, 7, 8
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(record.tobytes())
    test = read(tmp_path).test
    assert test.labels.tolist() == [4]
    assert test.images[0, 2, 5].tolist() == [7, 0, 0]
    assert test.images[0, 0, 31].tolist() == [0, 8, 0]
    assert test.images.sum() == 15
