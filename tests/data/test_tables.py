"""Parquet files as such; how data sets use them is in the tests of these."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.errors import DataError
from otkd.data import tables

CARD = DataCard(
    classes=3, channels=3, side=5, train=4, test=4, mean=(0.5,) * 3, std=(0.2,) * 3, augment=Augment(), about=""
)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)


def write(file: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("struct", [True, False])
def test_any_lossless_encoding_in_either_column(tmp_path: Path, pictures: np.ndarray, kind: str, struct: bool) -> None:
    cells = [encoded(picture, kind) for picture in pictures]
    column = [{"bytes": cell, "path": "x"} for cell in cells] if struct else cells
    files = [write(tmp_path / f"{n}.parquet", i=column[n::2], y=[n, 2]) for n in (0, 1)]
    read = tables.read_parquet(files, "i", "y", CARD)
    assert np.array_equal(read.images, pictures[[0, 2, 1, 3]])
    assert read.labels.tolist() == [0, 2, 1, 2]
    assert read.labels.dtype == np.int64


def test_grey_images_become_colour(tmp_path: Path, pictures: np.ndarray) -> None:
    grey = pictures[:1, :, :, 0]
    file = write(tmp_path / "a.parquet", i=[encoded(grey[0])], y=[0])
    assert np.array_equal(tables.read_parquet([file], "i", "y", CARD).images, np.stack([grey] * 3, axis=-1))


def test_more_rows_than_are_read_at_a_time(
    tmp_path: Path, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS", 3)
    file = write(tmp_path / "a.parquet", i=[encoded(picture) for picture in pictures], y=[0, 1, 2, 0])
    assert np.array_equal(tables.read_parquet([file], "i", "y", CARD).images, pictures)


def test_dictionary_columns(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", y=pa.array(["b", "a", "b"]).dictionary_encode())
    assert tables.column(file, "y").to_pylist() == ["b", "a", "b"]


def test_other_formats_are_not_tried(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (5, 5)).save(stream, "PCX")
    file = write(tmp_path / "a.parquet", i=[stream.getvalue()], y=[0])
    with pytest.raises(DataError, match=r"a\.parquet: row 0 holds no readable image"):
        tables.read_parquet([file], "i", "y", CARD)


def test_empty_label_names_the_row(tmp_path: Path, pictures: np.ndarray) -> None:
    cells = [encoded(picture) for picture in pictures]
    file = write(tmp_path / "a.parquet", i=cells, y=[0, 1, None, None])
    with pytest.raises(DataError, match=r"a\.parquet: row 2 of column 'y' is empty"):
        tables.read_parquet([file], "i", "y", CARD)


@pytest.mark.parametrize("labels", [["a"] * 4, [0.5] * 4])
def test_labels_of_another_type(tmp_path: Path, pictures: np.ndarray, labels: list[object]) -> None:
    file = write(tmp_path / "a.parquet", i=[encoded(picture) for picture in pictures], y=labels)
    with pytest.raises(DataError, match="should be integers"):
        tables.read_parquet([file], "i", "y", CARD)


def test_wrong_size_and_row(tmp_path: Path, pictures: np.ndarray) -> None:
    cells = [encoded(pictures[0]), encoded(pictures[1][:4])]
    file = write(tmp_path / "a.parquet", i=cells, y=[0, 1])
    with pytest.raises(DataError, match=r"row 1 .*5 × 4 pixels, not 5 × 5"):
        tables.read_parquet([file], "i", "y", CARD)
