"""Fashion-MNIST in both layouts, packed and unpacked."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otkd.core.errors import DataError
from otkd.data import fashion_mnist
from otkd.data.source import Arrays, RawSplits

NAMES = {"train": "train", "test": "t10k"}


def idx(array: np.ndarray) -> bytes:
    """Truth: the format's description; 0, 0, type (8 for bytes), dimensions, each as 4 bytes, largest first."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def small(layouts: Any, monkeypatch: pytest.MonkeyPatch) -> RawSplits:
    """Thirty and twenty images, as many of each class."""
    monkeypatch.setattr(fashion_mnist, "CARD", replace(fashion_mnist.CARD, train=30, test=20))
    return RawSplits(
        *(
            Arrays(layouts.random_images(count, count, 10, (28, 28, 1)).images, np.arange(count) % 10)
            for count in (30, 20)
        )
    )


def write_idx(folder: Path, raw: RawSplits, end: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if end else bytes
    for split, arrays in zip(NAMES.values(), raw, strict=True):
        (folder / f"{split}-images-idx3-ubyte{end}").write_bytes(pack(idx(arrays.images[..., 0])))
        (folder / f"{split}-labels-idx1-ubyte{end}").write_bytes(pack(idx(arrays.labels)))


def write_torchvision(base: Path, raw: RawSplits, layouts: Any) -> None:
    write_idx(base / "FashionMNIST" / "raw", raw)
    write_idx(base / "FashionMNIST" / "raw", raw, ".gz")


def write_packed(base: Path, raw: RawSplits, layouts: Any) -> None:
    write_idx(base, raw, ".gz")


def write_unpacked(base: Path, raw: RawSplits, layouts: Any) -> None:
    write_idx(base, raw)


def write_parquet(base: Path, raw: RawSplits, layouts: Any) -> None:
    for split, arrays in zip(NAMES, raw, strict=True):
        file = base / "fashion_mnist" / f"{split}-00000-of-00001.parquet"
        layouts.parquet(file, arrays, columns=("image", "label"))


@pytest.fixture
def read(ask: Any) -> Any:
    return lambda data_dir: fashion_mnist.read(ask("fashion_mnist", data_dir))


@pytest.mark.parametrize("deeper", ["", "fashion_mnist"])
@pytest.mark.parametrize(
    ("write", "files"), [(write_torchvision, 4), (write_packed, 4), (write_unpacked, 4), (write_parquet, 2)]
)
def test_every_layout(
    ask: Any, read: Any, tmp_path: Path, small: RawSplits, layouts: Any, write: Any, files: int, deeper: str
) -> None:
    write(tmp_path / deeper, small, layouts)
    layouts.assert_same(read(tmp_path), small)
    assert len(fashion_mnist.sources(ask("fashion_mnist", tmp_path))) == files


def test_unpacking_that_broke_off_leaves_the_packed_files(
    read: Any, tmp_path: Path, small: RawSplits, layouts: Any
) -> None:
    write_torchvision(tmp_path, small, layouts)
    (tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    layouts.assert_same(read(tmp_path), small)


def test_images_may_be_written_to(read: Any, tmp_path: Path, small: RawSplits) -> None:
    write_idx(tmp_path, small)
    assert read(tmp_path).train.images.flags.writeable


def test_mnist_is_not_taken_for_it(read: Any, tmp_path: Path, small: RawSplits, layouts: Any) -> None:
    labels = small.test.labels.copy()
    labels[3] = 4
    for write in (write_packed, write_parquet):
        write(tmp_path, RawSplits(small.train, Arrays(small.test.images, labels)), layouts)
        with pytest.raises(DataError, match=r"the test images in .* have 1 to 3 of each class.*MNIST\?"):
            read(tmp_path)


def test_other_counts_are_left_to_the_check(read: Any, tmp_path: Path, small: RawSplits) -> None:
    write_idx(tmp_path, RawSplits(Arrays(small.train.images[:29], small.train.labels[:29]), small.test))
    assert len(read(tmp_path).train.labels) == 29


def test_missing_file(read: Any, tmp_path: Path, small: RawSplits) -> None:
    write_idx(tmp_path, small, ".gz")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"but no t10k-labels-idx1-ubyte\.gz; all are needed"):
        read(tmp_path)


IMAGES, LABELS = np.zeros((20, 28, 28)), np.zeros(20)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3", b"", "begins with nothing"),
        ("images-idx3", b"\x1f\x8b\x08\x00rest", "begins with 1f 8b 08 00"),
        ("images-idx3", idx(LABELS), r"begins with 00 00 08 01; .* with 3 dimension\(s\) begins with 00 00 08 03"),
        ("labels-idx1", idx(IMAGES), "begins with 00 00 08 03"),
        ("images-idx3", bytes([0, 0, 9]) + idx(IMAGES)[3:], "begins with 00 00 09 03"),
        ("images-idx3", idx(IMAGES)[:-1], "15,695 bytes, where its head promises 15,696"),
        ("images-idx3", idx(IMAGES)[:7], "7 bytes, where its head promises"),
        ("labels-idx1", idx(LABELS) + b"x", "29 bytes, where its head promises 28"),
        ("images-idx3", idx(np.zeros((20, 32, 28))), r"its images have \(32, 28\) pixels; they should have \(28, 28\)"),
        ("labels-idx1", idx(LABELS[1:]), "holds 19 labels, and t10k-images-idx3-ubyte beside it 20 images"),
        ("labels-idx1", idx(np.arange(20) // 2 + 1), "row 18 has label 10; labels are 0 to 9"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_other_content(read: Any, tmp_path: Path, small: RawSplits, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path, small)
    (tmp_path / f"t10k-{name}-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"t10k-{name}-ubyte(:|: it|) {message}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-9],
        lambda packed: b"text" + packed,
        lambda packed: b"",
        lambda packed: packed[:10] + b"\xff" * 20 + packed[30:],
    ],
    ids=["cut", "no gzip", "empty", "garbled"],
)
def test_damaged_packed_file_is_named(read: Any, tmp_path: Path, small: RawSplits, damage: Any) -> None:
    write_idx(tmp_path, small, ".gz")
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: "):
        read(tmp_path)
