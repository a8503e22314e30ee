"""CIFAR-100 in both layouts, whole and damaged."""

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision.datasets.utils

from otkd.core.errors import DataError
from otkd.core.trial import Data
from otkd.data import cache, cifar100
from otkd.data.pipeline import prepare
from otkd.data.source import Arrays, RawSplits

REAL = os.environ.get("OTKD_DATA_DIR")


def assert_same(one: RawSplits, other: RawSplits) -> None:
    for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", refuse)


@pytest.mark.parametrize("deeper", ["", "cifar100"])
def test_parquet_layout(parquet_dir: Path, tiny: RawSplits, tmp_path: Path, deeper: str) -> None:
    assert_same(cifar100.read(parquet_dir / deeper, tmp_path), tiny)
    assert len(cifar100.sources(parquet_dir / deeper, tmp_path)) == 3


@pytest.mark.parametrize("deeper", ["", "cifar-100-python"])
def test_original_layout(original_dir: Path, tiny: RawSplits, tmp_path: Path, deeper: str) -> None:
    assert_same(cifar100.read(original_dir / deeper, tmp_path), tiny)
    assert len(cifar100.sources(original_dir / deeper, tmp_path)) == 2


def test_downloaded_folder_is_found_without_a_data_folder(original_dir: Path, tiny: RawSplits) -> None:
    assert_same(cifar100.read(None, original_dir), tiny)


def test_download_arrives_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: RawSplits, layouts: Any) -> None:
    def fetch(url: str, folder: Path, md5: str) -> None:
        assert url.startswith("https://")
        layouts.original(folder / "cifar-100-python" / "train", tiny.train)
        layouts.original(folder / "cifar-100-python" / "test", tiny.test)

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    assert_same(cifar100.read(None, tmp_path), tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-100-python"]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("data_dir", [None, "empty", "absent"])
def test_nothing_there_names_every_way_out(tmp_path: Path, data_dir: str | None) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        cifar100.read(tmp_path / data_dir if data_dir else None, tmp_path)
    message = str(caught.value)
    for way in ("cifar100/train-*.parquet", "cifar-100-python/train", "where the download works", "`make demo`"):
        assert way in message
    for name in ("--data-dir folder", "DATA=folder for make", "OTKD_DATA_DIR=folder", "no route to host"):
        assert name in message
    assert "--data " not in message, "there is no such option"
    assert not list(tmp_path.glob(".*partial*"))


def test_truncated_parquet_names_the_file(parquet_dir: Path, tmp_path: Path) -> None:
    file = parquet_dir / "cifar100" / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: damaged or incomplete"):
        cifar100.read(parquet_dir, tmp_path)


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_broken_png_names_file_and_row(
    parquet_dir: Path, tiny: RawSplits, tmp_path: Path, keep: int, layouts: Any
) -> None:
    file = parquet_dir / "cifar100" / "test-00000-of-00001.parquet"
    image = pq.read_table(file)["img"][2]["bytes"].as_py()
    layouts.parquet(file, tiny.test, spoil={2: image[:keep]})
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: row 2 "):
        cifar100.read(parquet_dir, tmp_path)


def test_missing_image_names_file_and_row(parquet_dir: Path, tmp_path: Path) -> None:
    file = parquet_dir / "cifar100" / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"img": pa.nulls(2, pa.struct({"bytes": pa.binary()})), "fine_label": [0, 1]}), file)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: row 0 "):
        cifar100.read(parquet_dir, tmp_path)


@pytest.mark.parametrize("label", [-1, 100])
def test_label_out_of_range_names_file_and_row(
    parquet_dir: Path, tiny: RawSplits, tmp_path: Path, label: int, layouts: Any
) -> None:
    labels = tiny.test.labels.copy()
    labels[3] = label
    layouts.parquet(parquet_dir / "cifar100" / "test-00000-of-00001.parquet", Arrays(tiny.test.images, labels))
    with pytest.raises(DataError, match=rf"test-00000-of-00001\.parquet: row 3 has label {label}"):
        cifar100.read(parquet_dir, tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"image": [b""], "label": [0]}, "has columns image, label"), ({"img": [b""], "fine_label": [None]}, "integers")],
)
def test_other_columns(parquet_dir: Path, tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), parquet_dir / "cifar100" / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=message):
        cifar100.read(parquet_dir, tmp_path)


def test_half_a_layout(parquet_dir: Path, original_dir: Path, tmp_path: Path) -> None:
    (parquet_dir / "cifar100" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"no test-\*\.parquet"):
        cifar100.sources(parquet_dir, tmp_path)
    (original_dir / "cifar-100-python" / "train").unlink()
    with pytest.raises(DataError, match="only one of the files train and test"):
        cifar100.sources(original_dir, tmp_path)


def test_truncated_original_names_the_file(original_dir: Path, tmp_path: Path) -> None:
    file = original_dir / "cifar-100-python" / "train"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-100-python.train: not a readable"):
        cifar100.read(original_dir, tmp_path)


@pytest.mark.parametrize("content", [[], {"data": 3}, {"data": "x", "fine_labels": []}, {"fine_labels": [1]}])
def test_original_with_other_content(original_dir: Path, tmp_path: Path, content: object) -> None:
    (original_dir / "cifar-100-python" / "train").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"cifar-100-python.train"):
        cifar100.read(original_dir, tmp_path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_pickle_cannot_call_anything(original_dir: Path, tmp_path: Path, tiny: RawSplits, layouts: Any) -> None:
    layouts.original(original_dir / "cifar-100-python" / "train", tiny.train, extra=Bomb(tmp_path / "boom"))
    with pytest.raises(DataError, match="mkdir, which data does not need"):
        cifar100.read(original_dir, tmp_path)
    assert not (tmp_path / "boom").exists()


def test_bytes_as_python_2_wrote_them(original_dir: Path, tmp_path: Path, tiny: RawSplits, layouts: Any) -> None:
    layouts.original(original_dir / "cifar-100-python" / "train", tiny.train, filenames=[b"\xe9.png"])
    assert_same(cifar100.read(original_dir, tmp_path), tiny)


def test_wrong_counts_are_refused(parquet_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 7 train images with 7 labels; there should be 50,000"):
        cache.load("cifar100", data_dir=parquet_dir, cache_dir=tmp_path)
    assert not list((tmp_path / "cifar100").glob("*.npy"))


@pytest.mark.skipif(not REAL, reason="set OTKD_DATA_DIR to a folder with CIFAR-100 to test on the real images")
def test_real_cifar100(tmp_path: Path) -> None:
    """Truth: the published counts, and the channel statistics that the literature states."""
    data = prepare(Data(name="cifar100"), data_dir=Path(str(REAL)), cache_dir=tmp_path)
    assert (len(data.train.labels), len(data.test.labels), data.val) == (50_000, 10_000, None)
    assert data.train.labels.bincount().tolist() == [500] * 100
    assert data.test.labels.bincount().tolist() == [100] * 100
    pixels = data.train.images[::5].permute(0, 2, 3, 1).reshape(-1, 3).float() / 255
    assert pixels.mean(0).tolist() == pytest.approx(data.card.mean, abs=2e-3)
    assert pixels.std(0).tolist() == pytest.approx(data.card.std, abs=2e-3)


def test_shards_follow_their_numbers(tmp_path: Path, layouts: Any) -> None:
    parts = [layouts.random_images(2, seed) for seed in range(3)]
    for number in (2, 0, 1):
        layouts.parquet(tmp_path / f"train-0000{number}-of-00003.parquet", parts[number])
    layouts.parquet(tmp_path / "test-00000-of-00001.parquet", parts[0])
    expected = np.concatenate([part.labels for part in parts])
    assert np.array_equal(cifar100.read(tmp_path, tmp_path).train.labels, expected)
