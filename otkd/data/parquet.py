"""Images of the user's own in parquet files, as Hugging Face has them: `parquet/<name>` is `<data_dir>/<name>/`.

Shards are `train-*.parquet` and `test-*.parquet` (or `validation-*`, `val-*`, `valid-*`), `<split>.parquet`, or all in
a folder `<split>/`; they may lie one folder deeper, in `data`, `plain_text` or `default`. One column has the encoded
images, another their labels: whole numbers from 0, or names, whose order is then that of their characters.

Images of one size are decoded once and held in memory. With `stream: true` they may be of any size and number: their
bytes are copied once into one file of the cache, and decoded to colour and scaled whenever they are needed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from otkd.core.augment import Augment, ResizedCrop
from otkd.core.cards import DataCard
from otkd.core.datasets import Found, Request, SurveyedOptions
from otkd.core.errors import DataError
from otkd.core.scaling import IMAGENET_MEAN, IMAGENET_STD, Scaled
from otkd.core.trial import digest as digest_of
from otkd.data.blob import Blob, Copy, kept_blobs
from otkd.data.cache import place, reader, stamps
from otkd.data.listing import File, digest, own_folder
from otkd.data.shards import Labels, Source, find_source, read_labels
from otkd.data.source import Arrays, EncodedSplits, RawSplits
from otkd.data.tables import encoded_images, open_image, pixels, read_images

Means = Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)]
Deviations = Annotated[tuple[PositiveFloat, ...], Field(strict=False)]


class Options(SurveyedOptions, Scaled):
    """Which columns, and how the images are held. `side` and `resize` are for streamed images."""

    image: str | None = None
    """Column of the images; by default the only one that can be."""
    label: str = "label"
    """Column of the labels: whole numbers from 0, or names."""
    test: str | None = None
    """Which split is the test set; by default the one of test, validation, val and valid that is there."""
    stream: bool = False
    """Decode and scale images when they are needed, for those of several sizes or too many for memory."""
    mean: Means = IMAGENET_MEAN
    """Mean of each channel, of pixels in 0..1; by default ImageNet's, and 0.5 of grey images."""
    std: Deviations = IMAGENET_STD
    """Standard deviation of the same; by default ImageNet's, and 0.25 of grey images."""

    of_the_card: ClassVar[tuple[str, ...]] = ("mean", "std")
    """Options that change no image, so that all their values share one cache."""

    @model_validator(mode="after")
    def _scaled_only_when_streamed(self) -> Options:
        if not self.stream and (self.side, self.resize) != (Scaled().side, Scaled().resize):
            raise ValueError("side, resize: only streamed images are scaled; add `stream: true`.")
        return self


def card(options: Options) -> DataCard:
    """What the survey found."""
    found = options.found
    grey = found.channels == 1
    return DataCard(
        classes=found.classes,
        channels=found.channels,
        side=options.side if options.stream else found.side,
        train=found.train,
        test=found.test,
        mean=(0.5,) if grey and options.mean == IMAGENET_MEAN else options.mean,
        std=(0.25,) if grey and options.std == IMAGENET_STD else options.std,
        augment=Augment(resized_crop=ResizedCrop(), flip=True) if options.stream else Augment(pad=4, flip=True),
        about="parquet/<name>: images of your own in train-*.parquet and test-*.parquet of a folder",
        streamed=options.stream,
        resize=options.resize if options.stream else 0,
    )


CARD = card(Options())

GREY = {"1", "L", "LA"}
COLOUR = {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}
"""PIL's modes of images with 8 bits a channel or fewer."""


def survey(request: Request) -> Found:
    """Count classes and images, and look at the first.

    Raises:
        DataError: there is no such folder, it has no such columns or splits, or labels or images that do not fit.
    """
    source, options = _source(request), request.options
    labels = read_labels(source)
    side, channels = _first_image(source, square=not options.stream)
    found = Found(
        classes=labels.classes,
        channels=3 if options.stream else channels,
        side=0 if options.stream else side,
        train=sum(map(len, labels.train)),
        test=sum(map(len, labels.test)),
        digest=_digest(source, labels),
    )
    _check_spread(request.name, options.model_copy(update={"found": found}))
    return found


def sources(request: Request) -> list[Path]:
    """The shards of both splits; none where no data folder is named."""
    if request.data_dir is None:
        return []
    source = _source(request)
    return [*source.train, *source.test]


def read(request: Request) -> RawSplits:
    """Every image, decoded. Raises `DataError` for one of another size than the first, or a grey one among colours."""
    source, made = _source(request), card(request.options)
    labels = read_labels(source)
    return RawSplits(
        _arrays(source.train, source.image, np.concatenate(labels.train), made),
        _arrays(source.test, source.image, np.concatenate(labels.test), made),
    )


def index(request: Request) -> EncodedSplits:
    """Every image as it is, from a copy in the cache.

    Raises:
        DataError: as for `survey`.
        StorageError: there is no room for the copy.
    """
    source = _source(request)
    labels = read_labels(source)
    kept_for = Options(image=source.image, test=request.options.test)
    splits = {"train": (source.train, labels.train), "test": (source.test, labels.test)}
    images = {split: partial(_encoded, files, source.image) for split, (files, _) in splits.items()}
    root = digest_of(os.path.realpath(source.root))[:8]
    blobs = kept_blobs(place(request._replace(options=kept_for)), root, _fingerprint(source), images)
    return EncodedSplits(*(_blob(blobs[split], *splits[split]) for split in ("train", "test")))


def _source(request: Request) -> Source:
    options = request.options
    folder = own_folder(request)
    return find_source(request.name, folder, image=options.image, label=options.label, test=options.test)


def _digest(source: Source, labels: Labels) -> str:
    """Sixteen hex digits of the files' names and sizes, and of every label."""
    files = digest(_file(source.root, path) for path in (*source.train, *source.test))
    parts = [
        hashlib.sha256(np.concatenate(split).astype("<i8").tobytes()).hexdigest()
        for split in (labels.train, labels.test)
    ]
    return digest_of([files, *parts])


def _file(root: Path, path: Path) -> File:
    return File(path.relative_to(root).as_posix(), path.stat().st_size)


def _check_spread(name: str, options: Options) -> None:
    made = card(options)
    for key, values in (("mean", made.mean), ("std", made.std)):
        if len(values) != made.channels:
            raise DataError(
                f"{name}: {key}: {len(values)} values were given; the images have {made.channels} channels."
            )


def _first_image(source: Source, *, square: bool) -> tuple[int, int]:
    """Width and channels of the first training image. Raises `DataError` unless it is square, where it should be."""
    images = ((file, encoded) for file in source.train for encoded in encoded_images(file, source.image))
    file, encoded = next(images)
    try:
        with open_image(encoded or b"") as picture:
            if square and picture.width != picture.height:
                raise DataError(_other_size(picture.size))
            return picture.width, _channels(picture.mode)
    except DataError as error:
        raise DataError(f"{file}: row 0: {error}") from error
    except Exception as error:  # PIL has a dozen ways to refuse a broken image
        raise DataError(
            f"{file}: row 0 of column {source.image!r} holds no readable image ({error}). The files need the images "
            "themselves, not their paths."
        ) from error


def _channels(mode: str) -> int:
    if mode not in GREY | COLOUR:
        raise DataError(
            f"it has PIL's mode {mode}; convert it to 8 bits a channel: {', '.join(sorted(GREY | COLOUR))}."
        )
    return 1 if mode in GREY else 3


def _other_size(size: tuple[int, int]) -> str:
    is_of = f"it is {size[0]} × {size[1]} pixels"
    return is_of + ". Images in memory are square and of one size; `options: {stream: true}` scales them."


def _arrays(files: list[Path], image: str, labels_N: NDArray[np.int64], made: DataCard) -> Arrays:
    try:
        return Arrays(read_images(files, image, len(labels_N), made, partial(_exact, made=made)), labels_N)
    except MemoryError as error:
        raise DataError(
            f"{files[0].parent}: {len(labels_N):,} images of {made.side} × {made.side} pixels exceed memory; with "
            "`options: {stream: true}` they stay on disk."
        ) from error


def _exact(encoded: bytes, made: DataCard) -> NDArray[np.uint8]:
    """The pixels of an image that is like the first."""
    with open_image(encoded) as picture:
        channels = _channels(picture.mode)
        if picture.size != (made.side, made.side):
            raise DataError(_other_size(picture.size))
        if channels != made.channels:
            kinds = {1: "grey", 3: "in colour"}
            raise DataError(
                f"it is {kinds[channels]}, and the first image is {kinds[made.channels]}. Convert it, or let "
                "`options: {stream: true}` convert all to colour."
            )
        return pixels(picture, channels)


def _encoded(files: list[Path], image: str) -> Iterable[bytes | None]:
    return (encoded for file in files for encoded in encoded_images(file, image))


def _blob(copy: Copy, files: list[Path], labels: list[NDArray[np.int64]]) -> Blob:
    starts = np.cumsum([0, *map(len, labels)])[:-1]
    return Blob(str(copy.file), copy.offsets, np.concatenate(labels), tuple(map(str, files)), starts, copy.sha256)


def _fingerprint(source: Source) -> str:
    """Changes with the column of images, with names, sizes and times of the files, and with the code that reads."""
    return digest_of([reader("parquet"), source.image, stamps(source.train), stamps(source.test)])
