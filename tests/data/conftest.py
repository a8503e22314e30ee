"""Small copies of CIFAR-100 in both of its layouts."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from otkd.data.source import Arrays, RawSplits


def random_images(count: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Arrays(images, rng.integers(0, 100, count))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(file: Path, arrays: Arrays, *, spoil: dict[int, bytes] | None = None) -> None:
    """One shard in the Hugging Face layout; `spoil` replaces the bytes of some rows."""
    encoded = [(spoil or {}).get(row, png(image)) for row, image in enumerate(arrays.images)]
    table = pa.table(
        {
            "img": [{"bytes": data, "path": None} for data in encoded],
            "fine_label": arrays.labels.tolist(),
            "coarse_label": [0] * len(encoded),
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def write_original(file: Path, arrays: Arrays, **more: object) -> None:
    """One split of the `cifar-100-python` folder."""
    content = {
        "filenames": [f"{row}.png" for row in range(len(arrays.labels))],
        "fine_labels": arrays.labels.tolist(),
        "coarse_labels": [0] * len(arrays.labels),
        "data": arrays.images.transpose(0, 3, 1, 2).reshape(len(arrays.labels), -1),
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=2))


class Layouts:
    """The writers above, for tests (which cannot import this file)."""

    random_images = staticmethod(random_images)
    parquet = staticmethod(write_parquet)
    original = staticmethod(write_original)


@pytest.fixture
def layouts() -> type[Layouts]:
    return Layouts


@pytest.fixture
def tiny() -> RawSplits:
    return RawSplits(random_images(7, 0), random_images(4, 1))


@pytest.fixture
def parquet_dir(tmp_path: Path, tiny: RawSplits) -> Path:
    folder = tmp_path / "mirror"
    first, second = (Arrays(tiny.train.images[part], tiny.train.labels[part]) for part in (slice(0, 5), slice(5, 7)))
    write_parquet(folder / "cifar100" / "train-00000-of-00002.parquet", first)
    write_parquet(folder / "cifar100" / "train-00001-of-00002.parquet", second)
    write_parquet(folder / "cifar100" / "test-00000-of-00001.parquet", tiny.test)
    return folder


@pytest.fixture
def original_dir(tmp_path: Path, tiny: RawSplits) -> Path:
    folder = tmp_path / "original"
    write_original(folder / "cifar-100-python" / "train", tiny.train)
    write_original(folder / "cifar-100-python" / "test", tiny.test)
    return folder


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that tests only read."""
    return tmp_path_factory.mktemp("cache")
