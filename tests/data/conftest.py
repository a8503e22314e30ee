"""Small copies of published data sets, and the requests for them."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from otkd.core.datasets import Request, configure
from otkd.data.source import Arrays, RawSplits

Ask = Callable[..., Request]


def random_images(count: int, seed: int, classes: int = 100, shape: tuple[int, int, int] = (32, 32, 3)) -> Arrays:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return Arrays(images, rng.integers(0, classes, count))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    file: Path,
    arrays: Arrays,
    *,
    spoil: dict[int, bytes] | None = None,
    columns: tuple[str, str] = ("img", "fine_label"),
) -> None:
    """One shard in the Hugging Face layout; `spoil` replaces the bytes of some rows."""
    encoded = [(spoil or {}).get(row, png(image)) for row, image in enumerate(arrays.images)]
    images, labels = [{"bytes": data, "path": None} for data in encoded], arrays.labels.tolist()
    table = pa.table({columns[0]: images, columns[1]: labels, "coarse_label": [0] * len(encoded)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def write_original(file: Path, arrays: Arrays, label: str = "fine_labels", **more: object) -> None:
    """A pickled batch of CIFAR, as numpy wrote it for Python 2."""
    content = {
        "filenames": [f"{row}.png" for row in range(len(arrays.labels))],
        label: arrays.labels.tolist(),
        "data": arrays.images.transpose(0, 3, 1, 2).reshape(len(arrays.labels), -1),
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=2))


def write_records(file: Path, arrays: Arrays, coarse: tuple[int, ...] = ()) -> None:
    """A binary batch of CIFAR: for each image the bytes `coarse`, its label and its pixels, channel by channel."""
    pieces = [
        bytes([*coarse, label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(arrays.images, arrays.labels, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(pieces))


def assert_same(one: RawSplits, other: RawSplits) -> None:
    for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


class Layouts:
    """The writers above, for tests (which cannot import this file)."""

    random_images = staticmethod(random_images)
    png = staticmethod(png)
    parquet = staticmethod(write_parquet)
    original = staticmethod(write_original)
    records = staticmethod(write_records)
    assert_same = staticmethod(assert_same)


@pytest.fixture
def layouts() -> type[Layouts]:
    return Layouts


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Make a request; unless said otherwise, what is downloaded lies in `tmp_path / "downloads"`."""

    def make(name: str, data_dir: Path | None, cache_dir: Path = tmp_path, **options: object) -> Request:
        return Request(name, configure(name, options), data_dir, cache_dir)

    return make


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils

    def refuse(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    for function in ("download_url", "download_and_extract_archive"):
        monkeypatch.setattr(torchvision.datasets.utils, function, refuse)


@pytest.fixture
def tiny() -> RawSplits:
    return RawSplits(random_images(7, 0), random_images(4, 1))


@pytest.fixture
def parquet_dir(tmp_path: Path, tiny: RawSplits) -> Path:
    """CIFAR-100 as from Hugging Face."""
    folder = tmp_path / "mirror"
    first, second = (Arrays(tiny.train.images[part], tiny.train.labels[part]) for part in (slice(0, 5), slice(5, 7)))
    write_parquet(folder / "cifar100" / "train-00000-of-00002.parquet", first)
    write_parquet(folder / "cifar100" / "train-00001-of-00002.parquet", second)
    write_parquet(folder / "cifar100" / "test-00000-of-00001.parquet", tiny.test)
    return folder


@pytest.fixture
def original_dir(tmp_path: Path, tiny: RawSplits) -> Path:
    """CIFAR-100 as in the archive for Python."""
    folder = tmp_path / "original"
    write_original(folder / "cifar-100-python" / "train", tiny.train)
    write_original(folder / "cifar-100-python" / "test", tiny.test)
    return folder


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that tests only read."""
    return tmp_path_factory.mktemp("cache")
