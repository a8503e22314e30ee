"""CIFAR-10 (Krizhevsky, 2009): 60,000 colour images of 32 × 32 pixels in 10 classes.

Read from whichever is there: parquet files as in the Hugging Face data set `uoft-cs/cifar10`, the `cifar-10-batches-py`
or the `cifar-10-batches-bin` folder of the original distribution, or a download of the former. Mean and standard
deviation are those of the training images; augmentation is RepDistiller's for CIFAR-100 (Tian et al., ICLR 2020).
"""

from __future__ import annotations

from pathlib import Path

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import Request
from otkd.data import originals
from otkd.data.cifar import read_batches, read_records
from otkd.data.originals import Item, Layout, Origin
from otkd.data.source import Arrays, RawSplits
from otkd.data.tables import misfit, read_parquet

CARD = DataCard(
    classes=10,
    channels=3,
    side=32,
    train=50_000,
    test=10_000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augment=Augment(pad=4, flip=True),
    about="32 × 32 colour photographs in 10 classes",
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)


def sources(request: Request) -> list[Path]:
    """The files that `read` would read; none when it would download them."""
    return originals.sources(request, ORIGIN)


def read(request: Request) -> RawSplits:
    """Every image. Errors as for `otkd.data.originals.read`."""
    return originals.read(request, ORIGIN)


def _parquet(files: list[Path]) -> Arrays:
    return read_parquet(files, "img", "label", CARD)


def _batches(files: list[Path]) -> Arrays:
    return read_batches(files, "labels", CARD)


def _records(files: list[Path]) -> Arrays:
    return read_records(files, 1, CARD)


def _items() -> list[Item]:
    from torchvision.datasets import CIFAR10

    return [Item(CIFAR10.url, CIFAR10.tgz_md5, CIFAR10.base_folder)]


BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARIES = tuple(f"{batch}.bin" for batch in BATCHES)

ORIGIN = Origin(
    "cifar10",
    (
        Layout(
            ("", "plain_text"),
            ("train-*.parquet",),
            ("test-*.parquet",),
            _parquet,
            "as in Hugging Face's uoft-cs/cifar10",
            lambda file: misfit(file, "img", "label"),
        ),
        Layout(("cifar-10-batches-py",), BATCHES, ("test_batch",), _batches, "as in the original archive for Python"),
        Layout(("cifar-10-batches-bin",), BINARIES, ("test_batch.bin",), _records, "as in the original binary archive"),
    ),
    _items,
    megabytes=170,
)
