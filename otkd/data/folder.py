"""Images of the user's own in class folders, as in imagenette: `folder/<name>` is `<data_dir>/<name>/`.

Training images lie in `train/<class>/`, test images in `test/<class>/` (or `val`, `valid`, `validation`), at any depth
below the class. Classes are the names of the folders in `train`, in the order of their characters.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from otkd.core.augment import Augment, ResizedCrop
from otkd.core.cards import DataCard
from otkd.core.datasets import Found, Request, SurveyedOptions
from otkd.core.errors import DataError, did_you_mean
from otkd.core.scaling import IMAGENET_MEAN, IMAGENET_STD, Scaled
from otkd.data.listing import Listing, Scan, choose_test, digest, folders_in, labelled, listed, named, own_folder
from otkd.data.source import EncodedSplits


class Options(SurveyedOptions, Scaled):
    """How the images are scaled, and which folder is the test set."""

    test: str | None = None
    """Folder of the test images; by default the one of test, val, valid and validation that is there."""
    mean: Annotated[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat], Field(strict=False)] = IMAGENET_MEAN
    """Mean of red, green and blue, of pixels in 0..1; by default ImageNet's."""
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)] = IMAGENET_STD
    """Standard deviation of the same."""


def card(options: Options) -> DataCard:
    """What the survey found, scaled as the options say."""
    return DataCard(
        classes=options.found.classes,
        channels=3,
        side=options.side,
        train=options.found.train,
        test=options.found.test,
        mean=options.mean,
        std=options.std,
        augment=Augment(resized_crop=ResizedCrop(), flip=True),
        about="folder/<name>: photographs of your own in train/<class>/ and test/<class>/ of a folder",
        streamed=True,
        resize=options.resize,
    )


CARD = card(Options())

TEST = ("test", "val", "valid", "validation")
"""Usual names of the test set."""


def survey(request: Request) -> Found:
    """Count classes and images.

    Raises:
        DataError: there is no such folder, or it is not laid out as above; says what is wrong and where.
    """
    listing = _listing(request)
    return Found(
        classes=len(listing.classes),
        train=len(listing.train.labels),
        test=len(listing.test.labels),
        digest=listing.digest,
    )


def sources(request: Request) -> list[Path]:
    """The folders of training and test images."""
    root = own_folder(request)
    return [root / "train", root / _test(request, root)]


def index(request: Request) -> EncodedSplits:
    """Every image file. Errors as for `survey`."""
    listing = _listing(request)
    return EncodedSplits(listing.train, listing.test)


def _listing(request: Request) -> Listing:
    kept_for = request._replace(options=Options(test=request.options.test))
    return listed(kept_for, own_folder(request), lambda root: _scanned(request, root))


def _scanned(request: Request, root: Path) -> Listing:
    test, scan = _test(request, root), Scan(root)
    scan.entries(root)
    train_found, test_found = scan.by_class("train"), scan.by_class(test)
    classes = tuple(train_found)
    return Listing(
        classes,
        labelled(root, "train", train_found, classes),
        labelled(root, test, test_found, classes),
        digest(chain(*train_found.values(), *test_found.values())),
        scan.stamps,
    )


def _test(request: Request, root: Path) -> str:
    """The folder of test images. Raises `DataError` where either split is missing."""
    there = folders_in(root)
    if "train" not in there:
        raise DataError(
            f"{request.name}: {root} has no folder train with a folder of images for each class; it has {named(there)}."
            f"{did_you_mean('train', there)}"
        )
    return choose_test(request.name, request.options.test, there, TEST)
