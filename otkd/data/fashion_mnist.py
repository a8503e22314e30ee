"""Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017): 70,000 grey images of 28 × 28 pixels, 10 kinds of clothing.

Read from whichever is there: parquet files as in the Hugging Face data set `zalando-datasets/fashion_mnist`, the
original idx files, as they are or unpacked, or a download of these. The files of MNIST have the same names and sizes;
they are told apart by their classes, which are of equal size here and not there.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import Request
from otkd.core.errors import DataError
from otkd.data import originals
from otkd.data.originals import Item, Layout, Origin
from otkd.data.source import Arrays, RawSplits, check_labels
from otkd.data.tables import misfit, read_parquet

CARD = DataCard(
    classes=10,
    channels=1,
    side=28,
    train=60_000,
    test=10_000,
    mean=(0.2860,),
    std=(0.3530,),
    augment=Augment(pad=2, flip=True),
    about="28 × 28 grey pictures of clothing in 10 classes",
    names=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
)

UINT8 = 0x08
"""The code of bytes in an idx file."""


def sources(request: Request) -> list[Path]:
    """The files that `read` would read; none when it would download them."""
    return originals.sources(request, ORIGIN)


def read(request: Request) -> RawSplits:
    """Every image. Errors as for `otkd.data.originals.read`, and where the images are those of MNIST."""
    raw = originals.read(request, ORIGIN)
    for split, arrays, count in (("training", raw.train, CARD.train), ("test", raw.test, CARD.test)):
        sizes = np.bincount(arrays.labels, minlength=CARD.classes)
        if len(arrays.labels) == count and np.ptp(sizes):
            raise DataError(
                f"fashion_mnist: the {split} images in {sources(request)[0].parent} have {sizes.min():,} to "
                f"{sizes.max():,} of each class, and Fashion-MNIST as many of each. Are they those of MNIST? "
                "Name the folder of Fashion-MNIST (--data-dir folder)."
            )
    return raw


def _parquet(files: list[Path]) -> Arrays:
    return read_parquet(files, "image", "label", CARD)


def _read_idx(files: list[Path]) -> Arrays:
    """One split from its file of images and its file of labels."""
    images_NHW, labels = _idx(files[0], dims=3), _idx(files[1], dims=1).astype(np.int64)
    if images_NHW.shape[1:] != (CARD.side, CARD.side):
        raise DataError(
            f"{files[0]}: its images have {images_NHW.shape[1:]} pixels; they should have {(CARD.side, CARD.side)}."
        )
    if len(images_NHW) != len(labels):
        raise DataError(
            f"{files[1]} holds {len(labels):,} labels, and {files[0].name} beside it {len(images_NHW):,} images. "
            "Get both files anew."
        )
    check_labels(str(files[1]), labels, CARD.classes)
    return Arrays(images_NHW[..., None], labels)


def _idx(file: Path, dims: int) -> NDArray[np.uint8]:
    """The array of an idx file: two zero bytes, its type, how many dimensions, each in 4 bytes, then the data."""
    content = _unpacked(file)
    if content[:4] != bytes([0, 0, UINT8, dims]):
        raise DataError(
            f"{file}: it begins with {content[:4].hex(' ') or 'nothing'}; an idx file of bytes with {dims} "
            f"dimension(s) begins with {bytes([0, 0, UINT8, dims]).hex(' ')}. Get the file anew."
        )
    head = 4 + 4 * dims
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, head, 4)]
    if len(content) != head + math.prod(shape):
        raise DataError(
            f"{file}: {len(content):,} bytes, where its head promises {head + math.prod(shape):,}. Get the file anew."
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


def _unpacked(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged or incomplete ({error}). Get the file anew.") from error


def _items() -> list[Item]:
    from torchvision.datasets import FashionMNIST

    return [Item(FashionMNIST.mirrors[0] + file, md5, file) for file, md5 in FashionMNIST.resources]


def _idx_layout(end: str, about: str) -> Layout:
    train, test = (
        tuple(f"{split}-{what}-ubyte{end}" for what in ("images-idx3", "labels-idx1")) for split in ("train", "t10k")
    )
    return Layout(("FashionMNIST/raw", "raw", ""), train, test, _read_idx, about)


ORIGIN = Origin(
    "fashion_mnist",
    (
        Layout(
            ("", "fashion_mnist"),
            ("train-*.parquet",),
            ("test-*.parquet",),
            _parquet,
            "as in Hugging Face's zalando-datasets/fashion_mnist",
            lambda file: misfit(file, "image", "label"),
        ),
        _idx_layout("", "the original files unpacked, as torchvision has them"),
        _idx_layout(".gz", "the original files"),
    ),
    _items,
    megabytes=30,
)
