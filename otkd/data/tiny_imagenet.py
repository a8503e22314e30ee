"""Tiny-ImageNet (Stanford's course CS231n, 2015): 110,000 images of 64 × 64 pixels in 200 classes of ImageNet.

Read from the folder `tiny-imagenet-200` of the original archive, or from a download of it. The labels of its test
images were never published, so its validation images are the test set here, as is usual. Classes are in the order of
their names (`n01443537` is 0). Some of the JPEGs are grey and become RGB. Images are held in memory: 1.4 GB.

The cache notices files that are added, removed or renamed; not those that are overwritten in place, because looking at
all 110,000 whenever they are loaded takes longer than loading them.

Mean and standard deviation are those of the training images. The shifts by at most 8 pixels are an eighth of the side,
like the 4 of CIFAR; mdistiller rotates by up to 20 degrees instead, and divides by other deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import Request
from otkd.core.errors import DataError
from otkd.data import originals
from otkd.data.originals import Item, Layout, Origin
from otkd.data.source import Arrays, RawSplits, check_count

CARD = DataCard(
    classes=200,
    channels=3,
    side=64,
    train=100_000,
    test=10_000,
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    augment=Augment(pad=8, flip=True),
    about="64 × 64 colour photographs in 200 classes of ImageNet",
)

FOLDER = "tiny-imagenet-200"


class Picture(NamedTuple):
    """An image that is still to be decoded."""

    file: Path
    label: int


def sources(request: Request) -> list[Path]:
    """The lists of classes and labels, and the folders of images; none when `read` would download them."""
    return originals.sources(request, ORIGIN)


def read(request: Request) -> RawSplits:
    """Every image. Errors as for `otkd.data.originals.read`."""
    return originals.read(request, ORIGIN)


def _read(paths: list[Path]) -> Arrays:
    """One split, from what the patterns of the layout match."""
    labels = {wnid: label for label, wnid in enumerate(_classes(paths[0]))}
    if paths[1].name == "val_annotations.txt":
        split, count, pictures = "test", CARD.test, _annotated(paths[1], labels)
    else:
        split, count, pictures = "train", CARD.train, _by_folder(paths[0], paths[1:], labels)
    check_count(f"tiny_imagenet ({paths[0].parent})", split, len(pictures), len(pictures), count)
    return Arrays(_decoded(pictures), np.array([picture.label for picture in pictures], np.int64))


def _classes(file: Path) -> list[str]:
    classes = sorted(_lines(file))
    if len(set(classes)) != CARD.classes:
        raise DataError(f"{file}: {len(set(classes))} classes; there should be {CARD.classes}. Get the data anew.")
    return classes


def _by_folder(list_: Path, folders: list[Path], labels: dict[str, int]) -> list[Picture]:
    """Training images: by class, then by name."""
    missing = set(labels) - {folder.parent.name for folder in folders}
    if missing:
        raise DataError(f"{list_.parent / 'train'}: there is no {min(missing)}/images, a class of {list_.name}.")
    return [
        Picture(file, labels[folder.parent.name])
        for folder in folders
        if folder.parent.name in labels
        for file in sorted(folder.glob("*.JPEG"))
    ]


def _annotated(file: Path, labels: dict[str, int]) -> list[Picture]:
    """Validation images in the order of their annotations: name, class, and a box that is of no concern here."""
    pictures = []
    for row, line in enumerate(_lines(file)):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in labels:
            raise DataError(f"{file}: row {row} has class {wnid!r}, which is not in wnids.txt. Get the file anew.")
        pictures.append(Picture(file.parent / "images" / name, labels[wnid]))
    return pictures


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: it cannot be read ({error}). Get the file anew.") from error


def _decoded(pictures: Sequence[Picture]) -> np.ndarray:
    """All images (N, H, W, C), one after the other into their place."""
    images_NHWC = np.empty((len(pictures), CARD.side, CARD.side, CARD.channels), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            with Image.open(picture.file, formats=("JPEG",)) as image:
                if image.size != (CARD.side, CARD.side):
                    raise ValueError(f"{image.width} × {image.height} pixels, not {CARD.side} × {CARD.side}")
                images_NHWC[row] = np.asarray(image.convert("RGB"))
        except Exception as error:  # PIL has a dozen ways to refuse a broken image
            raise DataError(f"{picture.file}: no readable image ({error}). Get the file anew.") from error
    return images_NHWC


def _items() -> list[Item]:
    url = f"http://cs231n.stanford.edu/{FOLDER}.zip"
    return [Item(url, "90528d7ca1a48142e341f4ef8d21d0de", FOLDER)]


ORIGIN = Origin(
    "tiny_imagenet",
    (
        Layout(
            (FOLDER,),
            ("wnids.txt", "train/*/images/"),
            ("wnids.txt", "val/val_annotations.txt", "val/images/"),
            _read,
            "as in the original archive",
        ),
    ),
    _items,
    megabytes=240,
)
