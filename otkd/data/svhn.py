"""Street View House Numbers (Netzer et al., 2011): digits from photographs, 32 × 32 pixels in colour.

With `{extra: true}`, the 73,257 training images are followed by the 531,131 easier ones that were published beside
them. Mean and standard deviation are those of the 73,257 in either case. Digits are not mirrored. The digit 0, which
the MATLAB files label 10, has label 0.

Read from whichever is there: parquet files as in `cropped_digits` of the Hugging Face data set `ufldl-stanford/svhn`,
the original MATLAB files `train_32x32.mat`, `test_32x32.mat` and `extra_32x32.mat`, or a download of these.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import DataOptions, Request
from otkd.core.errors import DataError
from otkd.data import originals
from otkd.data.originals import Item, Layout, Origin
from otkd.data.source import Arrays, RawSplits
from otkd.data.tables import misfit, read_parquet

EXTRA = 531_131
"""Easier training images."""


class Options(DataOptions):
    """What one may choose of this data set."""

    extra: bool = False
    """Train also on the 531,131 easier images: 1.9 GB in all, and twice as much while they are first read."""


def card(options: Options) -> DataCard:
    """The card with these options."""
    return replace(CARD, train=CARD.train + EXTRA) if options.extra else CARD


CARD = DataCard(
    classes=10,
    channels=3,
    side=32,
    train=73_257,
    test=26_032,
    mean=(0.4377, 0.4438, 0.4728),
    std=(0.1980, 0.2010, 0.1970),
    augment=Augment(pad=4),
    about="32 × 32 house numbers in colour, 10 digits; `{extra: true}` for 531,131 more to train on",
)


def sources(request: Request) -> list[Path]:
    """The files that `read` would read; none when it would download them."""
    return originals.sources(request, _origin(request.options))


def read(request: Request) -> RawSplits:
    """Every image. Errors as for `otkd.data.originals.read`."""
    return originals.read(request, _origin(request.options))


def _origin(options: Options) -> Origin:
    training = ["train", "extra"] if options.extra else ["train"]
    parquet, mat = (tuple(end.format(split) for split in training) for end in ("{}-*.parquet", "{}_32x32.mat"))
    return Origin(
        "svhn",
        (
            Layout(
                ("", "cropped_digits"),
                parquet,
                ("test-*.parquet",),
                _parquet,
                "as in cropped_digits of Hugging Face's ufldl-stanford/svhn",
                lambda file: misfit(file, "image", "label"),
            ),
            Layout(("",), mat, ("test_32x32.mat",), _read_mat, "the original MATLAB files"),
        ),
        lambda: _items([*training, "test"]),
        megabytes=1_580 if options.extra else 250,
        advice=", or leave out `extra: true`" if options.extra else "",
    )


def _items(splits: list[str]) -> list[Item]:
    from torchvision.datasets import SVHN

    return [Item(url, md5, file) for url, file, md5 in (SVHN.split_list[split] for split in splits)]


def _parquet(files: list[Path]) -> Arrays:
    return read_parquet(files, "image", "label", CARD)


def _read_mat(files: list[Path]) -> Arrays:
    """The images of all files, in memory once, beside those of one file that is being read."""
    counts = [_count(file) for file in files]
    images_NHWC = np.empty((sum(counts), CARD.side, CARD.side, CARD.channels), np.uint8)
    labels, start = [], 0
    for file, count in zip(files, counts, strict=True):
        labels.append(_fill(images_NHWC[start : start + count], file))
        start += count
    return Arrays(images_NHWC, np.concatenate(labels))


def _count(file: Path) -> int:
    """How many images a file says that it holds."""
    from scipy.io import whosmat

    shapes = {name: (shape, kind) for name, shape, kind in _matlab(whosmat, file)}
    shape, kind = shapes.get("X", ((), "nothing"))
    if kind != "uint8" or shape[:3] != (CARD.side, CARD.side, CARD.channels) or len(shape) != 4:
        raise DataError(
            f"{file}: X is {kind} of shape {shape}; it should be uint8 of shape "
            f"{(CARD.side, CARD.side, CARD.channels)} and the number of images. Get the file anew."
        )
    if shapes.get("y", ((), ""))[0] != (shape[3], 1):
        raise DataError(f"{file}: y should hold {shape[3]:,} labels, one for each image. Get the file anew.")
    return int(shape[3])


def _fill(images_NHWC: NDArray[np.uint8], file: Path) -> NDArray[np.int64]:
    """Read a file's images into their place; returns their labels."""
    from scipy.io import loadmat

    content = _matlab(loadmat, file, variable_names=("X", "y"))
    images_NHWC[:] = content["X"].transpose(3, 0, 1, 2)
    labels: NDArray[np.int64] = content["y"][:, 0].astype(np.int64)
    wrong = np.flatnonzero((labels < 1) | (labels > CARD.classes))
    if len(wrong):
        raise DataError(
            f"{file}: row {wrong[0]} has label {labels[wrong[0]]}; labels are 1 to {CARD.classes}, which means 0."
        )
    return labels % CARD.classes


def _matlab(read_file: Any, file: Path, **options: Any) -> Any:
    try:
        return read_file(file, **options)
    except Exception as error:  # scipy has a dozen ways to refuse a broken file
        raise DataError(f"{file}: damaged or incomplete ({error}). Get the file anew.") from error
