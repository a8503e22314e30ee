"""CIFAR-100 in all of its layouts, whole and damaged."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from otkd.core.errors import DataError
from otkd.core.trial import Data
from otkd.data import cache, cifar100
from otkd.data.pipeline import prepare
from otkd.data.source import Arrays, RawSplits

REAL = os.environ.get("OTKD_DATA_DIR")


@pytest.fixture
def read(ask: Any) -> Any:
    return lambda data_dir: cifar100.read(ask("cifar100", data_dir))


@pytest.fixture
def sources(ask: Any) -> Any:
    return lambda data_dir: cifar100.sources(ask("cifar100", data_dir))


@pytest.fixture
def binary_dir(tmp_path: Path, tiny: RawSplits, layouts: Any) -> Path:
    """The binary archive: a coarse label, the fine one, and the pixels."""
    folder = tmp_path / "binary"
    layouts.records(folder / "cifar-100-binary" / "train.bin", tiny.train, coarse=(19,))
    layouts.records(folder / "cifar-100-binary" / "test.bin", tiny.test, coarse=(3,))
    return folder


@pytest.mark.parametrize("deeper", ["", "cifar100"])
def test_parquet_layout(read: Any, sources: Any, parquet_dir: Path, tiny: RawSplits, layouts: Any, deeper: str) -> None:
    layouts.assert_same(read(parquet_dir / deeper), tiny)
    assert len(sources(parquet_dir / deeper)) == 3


@pytest.mark.parametrize("deeper", ["", "cifar-100-python"])
def test_original_layout(
    read: Any, sources: Any, original_dir: Path, tiny: RawSplits, layouts: Any, deeper: str
) -> None:
    layouts.assert_same(read(original_dir / deeper), tiny)
    assert len(sources(original_dir / deeper)) == 2


@pytest.mark.parametrize("deeper", ["", "cifar-100-binary"])
def test_binary_layout(read: Any, sources: Any, binary_dir: Path, tiny: RawSplits, layouts: Any, deeper: str) -> None:
    layouts.assert_same(read(binary_dir / deeper), tiny)
    assert len(sources(binary_dir / deeper)) == 2


@pytest.mark.parametrize("layout", ["parquet_dir", "original_dir", "binary_dir"])
def test_every_layout_in_a_folder_of_its_name(
    read: Any, request: pytest.FixtureRequest, tmp_path: Path, tiny: RawSplits, layouts: Any, layout: str
) -> None:
    request.getfixturevalue(layout).rename(tmp_path / "cifar100")
    layouts.assert_same(read(tmp_path), tiny)


def test_an_earlier_download_is_found(
    ask: Any, tmp_path: Path, original_dir: Path, tiny: RawSplits, layouts: Any
) -> None:
    original_dir.rename(tmp_path / "downloads")
    layouts.assert_same(cifar100.read(ask("cifar100", None)), tiny)


def test_truncated_parquet_names_the_file(read: Any, parquet_dir: Path) -> None:
    file = parquet_dir / "cifar100" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: damaged or incomplete"):
        read(parquet_dir)


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_broken_png_names_file_and_row(read: Any, parquet_dir: Path, tiny: RawSplits, keep: int, layouts: Any) -> None:
    file = parquet_dir / "cifar100" / "test-00000-of-00001.parquet"
    image = pq.read_table(file)["img"][2]["bytes"].as_py()
    layouts.parquet(file, tiny.test, spoil={2: image[:keep]})
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: row 2 "):
        read(parquet_dir)


def test_missing_image_names_file_and_row(read: Any, parquet_dir: Path) -> None:
    file = parquet_dir / "cifar100" / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"img": pa.nulls(2, pa.struct({"bytes": pa.binary()})), "fine_label": [0, 1]}), file)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: row 0 "):
        read(parquet_dir)


def spoilt(arrays: Arrays, row: int, label: int) -> Arrays:
    labels = arrays.labels.copy()
    labels[row] = label
    return Arrays(arrays.images, labels)


@pytest.mark.parametrize("label", [-1, 100])
def test_label_out_of_range_names_file_and_row(
    read: Any, parquet_dir: Path, original_dir: Path, tiny: RawSplits, label: int, layouts: Any
) -> None:
    wrong = spoilt(tiny.test, 3, label)
    layouts.parquet(parquet_dir / "cifar100" / "test-00000-of-00001.parquet", wrong)
    with pytest.raises(DataError, match=rf"test-00000-of-00001\.parquet: row 3 has label {label}"):
        read(parquet_dir)
    layouts.original(original_dir / "cifar-100-python" / "test", wrong)
    with pytest.raises(DataError, match=rf"cifar-100-python/test: row 3 has label {label}"):
        read(original_dir)


def test_label_out_of_range_in_the_binary_file(read: Any, binary_dir: Path, tiny: RawSplits, layouts: Any) -> None:
    layouts.records(binary_dir / "cifar-100-binary" / "train.bin", spoilt(tiny.train, 5, 100), coarse=(0,))
    with pytest.raises(DataError, match=r"cifar-100-binary/train\.bin: row 5 has label 100; labels are 0 to 99"):
        read(binary_dir)


@pytest.mark.parametrize("keep", [0, 1, -1])
def test_truncated_binary_names_the_file(read: Any, binary_dir: Path, keep: int) -> None:
    file = binary_dir / "cifar-100-binary" / "train.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cifar-100-binary/train\.bin: [\d,]+ bytes are not a whole number of images"):
        read(binary_dir)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"image": [b""], "label": [0]}, "has columns image, label"), ({"img": [b""], "fine_label": [None]}, "integers")],
)
def test_other_columns(read: Any, parquet_dir: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), parquet_dir / "cifar100" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=message):
        read(parquet_dir)


def test_half_a_layout(sources: Any, parquet_dir: Path, original_dir: Path) -> None:
    (parquet_dir / "cifar100" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has train-\*\.parquet but no test-\*\.parquet"):
        sources(parquet_dir)
    (original_dir / "cifar-100-python" / "train").unlink()
    with pytest.raises(DataError, match="cifar-100-python has test but no train; all are needed"):
        sources(original_dir)


def test_truncated_original_names_the_file(read: Any, original_dir: Path) -> None:
    file = original_dir / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-100-python.train: not a readable"):
        read(original_dir)


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"data": 3},
        {"data": "x", "fine_labels": []},
        {"fine_labels": [1]},
        {"data": PIXELS, "labels": [0, 0]},
        {"data": PIXELS[:, 1:], "fine_labels": [0, 0]},
        {"data": PIXELS, "fine_labels": [0, 0, 0]},
        {"data": PIXELS, "fine_labels": [0.5, 0.5]},
        {"data": PIXELS, "fine_labels": [[0], [0]]},
        {"data": PIXELS.astype(np.int64), "fine_labels": [0, 0]},
    ],
)
def test_original_with_other_content(read: Any, original_dir: Path, content: object) -> None:
    (original_dir / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"cifar-100-python.train: .*Get the file anew"):
        read(original_dir)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_pickle_cannot_call_anything(
    read: Any, original_dir: Path, tmp_path: Path, tiny: RawSplits, layouts: Any
) -> None:
    layouts.original(original_dir / "cifar-100-python" / "train", tiny.train, extra=Bomb(tmp_path / "boom"))
    with pytest.raises(DataError, match="mkdir, which data does not need"):
        read(original_dir)
    assert not (tmp_path / "boom").exists()


def test_bytes_as_python_2_wrote_them(read: Any, original_dir: Path, tiny: RawSplits, layouts: Any) -> None:
    layouts.original(original_dir / "cifar-100-python" / "train", tiny.train, filenames=[b"\xe9.png"])
    layouts.assert_same(read(original_dir), tiny)


def test_wrong_counts_are_refused(ask: Any, parquet_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 7 train images with 7 labels; there should be 50,000"):
        cache.load(ask("cifar100", parquet_dir), cifar100.CARD)
    assert not list((tmp_path / "cifar100").glob("*.npy"))


@pytest.mark.skipif(not REAL, reason="set OTKD_DATA_DIR to a folder with CIFAR-100 to test on the real images")
def test_real_cifar100(tmp_path: Path) -> None:
    """Truth: the published counts, and the channel statistics that the literature states."""
    data = prepare(Data(name="cifar100"), data_dir=Path(str(REAL)), cache_dir=tmp_path)
    assert (len(data.train.labels), len(data.test.labels), data.val) == (50_000, 10_000, None)
    assert data.train.labels.bincount().tolist() == [500] * 100
    assert data.test.labels.bincount().tolist() == [100] * 100
    assert isinstance(data.train.source, torch.Tensor)
    pixels = data.train.source[::5].reshape(-1, 3).float() / 255
    assert pixels.mean(0).tolist() == pytest.approx(data.card.mean, abs=2e-3)
    assert pixels.std(0).tolist() == pytest.approx(data.card.std, abs=2e-3)


def test_classes_are_in_the_order_of_their_names() -> None:
    assert [*cifar100.CARD.names] == sorted(cifar100.CARD.names)


def test_shards_follow_their_numbers(read: Any, tmp_path: Path, layouts: Any) -> None:
    parts = [layouts.random_images(2, seed) for seed in range(3)]
    for number in (2, 0, 1):
        layouts.parquet(tmp_path / f"train-0000{number}-of-00003.parquet", parts[number])
    layouts.parquet(tmp_path / "test-00000-of-00001.parquet", parts[0])
    expected = np.concatenate([part.labels for part in parts])
    assert np.array_equal(read(tmp_path).train.labels, expected)
