"""CIFAR-100 (Krizhevsky, 2009): 60,000 colour images of 32 × 32 pixels in 100 classes.

Read from whichever is there: parquet files as in the Hugging Face data set `uoft-cs/cifar100`, the `cifar-100-python`
or the `cifar-100-binary` folder of the original distribution, or a download of the former. Mean, standard deviation and
augmentation are those of RepDistiller (Tian et al., ICLR 2020).
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

NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
"""The classes in the order of their labels, as in the file `meta` of the original distribution."""

CARD = DataCard(
    classes=100,
    channels=3,
    side=32,
    train=50_000,
    test=10_000,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    augment=Augment(pad=4, flip=True),
    about="32 × 32 colour photographs in 100 classes; the usual benchmark of distillation",
    names=tuple(NAMES.split()),
)


def sources(request: Request) -> list[Path]:
    """The files that `read` would read; none when it would download them."""
    return originals.sources(request, ORIGIN)


def read(request: Request) -> RawSplits:
    """Every image. Errors as for `otkd.data.originals.read`."""
    return originals.read(request, ORIGIN)


def _parquet(files: list[Path]) -> Arrays:
    return read_parquet(files, "img", "fine_label", CARD)


def _batches(files: list[Path]) -> Arrays:
    return read_batches(files, "fine_labels", CARD)


def _records(files: list[Path]) -> Arrays:
    return read_records(files, 2, CARD)  # the coarse label, then the fine one


def _items() -> list[Item]:
    from torchvision.datasets import CIFAR100

    return [Item(CIFAR100.url, CIFAR100.tgz_md5, CIFAR100.base_folder)]


ORIGIN = Origin(
    "cifar100",
    (
        Layout(
            ("", "cifar100"),
            ("train-*.parquet",),
            ("test-*.parquet",),
            _parquet,
            "as in Hugging Face's uoft-cs/cifar100",
            lambda file: misfit(file, "img", "fine_label"),
        ),
        Layout(("cifar-100-python",), ("train",), ("test",), _batches, "as in the original archive for Python"),
        Layout(("cifar-100-binary",), ("train.bin",), ("test.bin",), _records, "as in the original binary archive"),
    ),
    _items,
    megabytes=170,
)
