"""Images that are computed, for tests and benchmarks: any number, size and difficulty, without files or a network.

Every class has a smooth pattern. An image shows its class's pattern, shifted by up to a quarter of the side (around the
edges), under a pattern of its own. With the options as they are, a linear classifier gets about two thirds of the
test images right.

Patterns are computed in integers, and their random bits are PCG64's, which numpy pins: the images are the same on every
machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.datasets import DataOptions, Request
from otkd.core.seeds import derive
from otkd.data.source import Arrays, RawSplits


class Options(DataOptions):
    """How many images of which kind, and how hard they are."""

    classes: Annotated[PositiveInt, Field(ge=2)] = 10
    channels: Literal[1, 3] = 3
    side: Annotated[PositiveInt, Field(ge=4)] = 32
    """Height and width in pixels."""
    train: PositiveInt = 1000
    """Training images."""
    test: PositiveInt = 200
    """Test images."""
    noise: Annotated[NonNegativeFloat, Field(le=1)] = 0.5
    """Share of an image's own pattern: 0 shows nothing but the class's pattern, 1 nothing of it."""

    @model_validator(mode="after")
    def _an_image_for_each_class(self) -> Options:
        if self.train < self.classes:
            raise ValueError(f"train: {self.classes} classes take at least as many images. Got {self.train}.")
        return self


def card(options: Options) -> DataCard:
    """Images as the options say; pixels are spread alike with all of them."""
    return replace(
        CARD,
        classes=options.classes,
        channels=options.channels,
        side=options.side,
        train=options.train,
        test=options.test,
        mean=CARD.mean[: options.channels],
        std=CARD.std[: options.channels],
    )


CARD = DataCard(
    classes=10,
    channels=3,
    side=32,
    train=1000,
    test=200,
    mean=(0.5, 0.5, 0.5),
    std=(0.1667, 0.1667, 0.1667),
    augment=Augment(pad=4),
    about="computed patterns of any number and size, without files; for tests and benchmarks",
)

GRID = 4
"""Random values of a pattern along each side; between them it is linear."""
LEVELS = 4096
"""Steps of a pattern between its darkest and its brightest possible value."""
CHUNK = 32
"""Images that are computed at a time; another number would give other images."""


def sources(request: Request) -> list[Path]:
    """No files: the images are computed."""
    return []


def read(request: Request) -> RawSplits:
    """The images; class k has rows k, k + K, k + 2K, …"""
    options: Options = request.options
    patterns_KCHW = _patterns(np.random.PCG64(derive(0, "synthetic/classes")), options.classes, options)
    return RawSplits(
        _split(options, patterns_KCHW, "train", options.train), _split(options, patterns_KCHW, "test", options.test)
    )


def _split(options: Options, patterns_KCHW: NDArray[np.float64], split: str, count: int) -> Arrays:
    bits = np.random.PCG64(derive(0, f"synthetic/{split}"))
    labels_N = np.arange(count, dtype=np.int64) % options.classes
    images_NHWC = np.empty((count, options.side, options.side, options.channels), np.uint8)
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        images_NHWC[rows] = _images(bits, patterns_KCHW, labels_N[rows], options)
    return Arrays(images_NHWC, labels_N)


def _images(
    bits: np.random.PCG64, patterns_KCHW: NDArray[np.float64], labels_B: NDArray[np.int64], options: Options
) -> NDArray[np.uint8]:
    """Images (B, H, W, C) of these labels, of mean 127.5 and deviation 42.5, clipped at three of these."""
    own, shown = options.noise, 1 - options.noise
    class_BCHW = _shifted(bits, patterns_KCHW[labels_B])
    mixed_BCHW = (shown * class_BCHW + own * _patterns(bits, len(labels_B), options)) / np.sqrt(shown**2 + own**2)
    return np.clip(np.rint(127.5 + 42.5 * mixed_BCHW), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _patterns(bits: np.random.PCG64, count: int, options: Options) -> NDArray[np.float64]:
    """Smooth random images (N, C, H, W), each channel of mean 0 and deviation 1."""
    grid = _below(bits, 256, (count, options.channels, GRID, GRID))
    full = _stretched(_stretched(grid, options.side).swapaxes(2, 3), options.side).swapaxes(2, 3)
    levels = full * LEVELS // (255 * (options.side - 1) ** 2)
    mean = levels.mean((2, 3), keepdims=True)
    deviation = np.sqrt((levels * levels).mean((2, 3), keepdims=True) - mean * mean)
    return (levels - mean) / np.maximum(deviation, 1)


def _stretched(grid_NCGX: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Linear between the values along the third axis, `side` long; all values are multiplied by `side - 1`."""
    place = np.arange(side) * (GRID - 1)
    left = np.minimum(place // (side - 1), GRID - 2)
    right_share = (place - left * (side - 1))[:, None]
    return grid_NCGX[:, :, left] * (side - 1 - right_share) + grid_NCGX[:, :, left + 1] * right_share


def _shifted(bits: np.random.PCG64, images_BCHW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each image moved by up to a quarter of its side along both axes; what leaves at an edge enters at the other."""
    side = images_BCHW.shape[-1]
    offset_B2 = _below(bits, 2 * (side // 4) + 1, (len(images_BCHW), 2)) - side // 4
    y_BH, x_BW = ((np.arange(side) + offset_B2[:, [axis]]) % side for axis in (0, 1))
    image_B, channel_C = np.arange(len(images_BCHW)), np.arange(images_BCHW.shape[1])
    return images_BCHW[
        image_B[:, None, None, None], channel_C[:, None, None], y_BH[:, None, :, None], x_BW[:, None, None, :]
    ]


def _below(bits: np.random.PCG64, limit: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Random integers 0 … limit - 1."""
    raw = bits.random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(32)) * np.uint64(limit) >> np.uint64(32)).astype(np.int64).reshape(shape)
