"""From a data set's name to batches on the device: choose, split, order, augment, normalise.

Every random draw comes from a generator of its own, seeded by what it is for, on the CPU: the same seed gives the same
batches on every device. Images stay on the device as uint8 and are augmented there, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from otkd.core import cards, plugins, trial
from otkd.core.cards import DataCard
from otkd.core.errors import OtkdError
from otkd.core.output import Batch
from otkd.core.seeds import derive
from otkd.data import cache
from otkd.data.source import Arrays
from otkd.data.subset import Rows, balanced, proportional


class Images(NamedTuple):
    """Images of one split."""

    images: Tensor
    """(N, C, H, W), uint8"""
    labels: Tensor
    """(N,), int64"""
    indices: Tensor
    """(N,), int64: the row in the full training (or test) set"""


class Splits(NamedTuple):
    """What a trial trains on, selects by and is tested on."""

    train: Images
    val: Images | None
    test: Images
    card: DataCard


def prepare(config: trial.Data, *, data_dir: Path | None, cache_dir: Path) -> Splits:
    """Load a data set, take its `limit`, then hold out `val`.

    Args:
        config: name, limit, val and split seed.
        data_dir: the user's data folder (OTKD_DATA_DIR), or None.
        cache_dir: our folder for decoded images and downloads.

    Raises:
        DataError: the images cannot be had.
        OtkdError: `limit` or `val` is impossible for this data set.
    """
    raw = cache.load(config.name, data_dir=data_dir, cache_dir=cache_dir)
    card: DataCard = plugins.cards("data")[config.name]
    train, val = split(raw.train.labels, config, card)
    held_out = _images(raw.train, val) if len(val) else None
    return Splits(_images(raw.train, train), held_out, _images(raw.test, np.arange(card.test)), card)


def split(labels: Rows, config: trial.Data, card: DataCard) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out for validation, both ascending.

    Args:
        labels: (N,) of the full training set.
        config: limit, val and split seed.
        card: says how many classes there are.

    Raises:
        OtkdError: `limit` or `val` is impossible.
    """
    rows = np.arange(len(labels))
    if config.limit is not None:
        if config.limit > len(rows):
            raise OtkdError(
                f"data.limit: {config.limit:,} is more than the {len(rows):,} training images of {config.name}."
            )
        rows = balanced(labels, config.limit, derive(config.split_seed, "limit"))
    count = _val_count(config.val, len(rows))
    val = rows[proportional(labels[rows], count, derive(config.split_seed, "split"))]
    train = np.setdiff1d(rows, val, assume_unique=True)
    missing = card.classes - len(np.unique(labels[train]))
    if missing:
        raise OtkdError(
            f"data: {len(train)} training images (limit {config.limit}, val {config.val:g}) leave {missing} of the "
            f"{card.classes} classes of {config.name} without one. Raise data.limit or lower data.val."
        )
    return train, val


def _val_count(val: float, train: int) -> int:
    if 0 < val < 1:
        count = round(val * train)
        if count == 0:
            raise OtkdError(
                f"data.val: a share of {val:g} of {train:,} training images is none. Give a larger share, or 0."
            )
    elif val == int(val):
        count = int(val)
    else:
        raise OtkdError(f"data.val: {val:g} is neither a share below 1 nor a whole number of images.")
    if count >= train:
        raise OtkdError(f"data.val: holding out {count:,} of {train:,} training images leaves none to train on.")
    return count


def _images(arrays: Arrays, rows: Rows) -> Images:
    """Rows as tensors; without a copy when they are all of them."""
    images, labels = arrays if len(rows) == len(arrays.labels) else (arrays.images[rows], arrays.labels[rows])
    return Images(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), torch.from_numpy(rows))


class Batches:
    """Batches of one split, made on `device`.

    Args:
        images: the split; moved to the device once, as uint8.
        card: mean, standard deviation and usual augmentation.
        augment: of training batches; None is the card's. `Augment()` is none at all.
        batch_size: B. The last batch may be smaller; a last single image is left out, as batch norm cannot take it.
        seed: the trial's seed.
        device: where batches are wanted.
    """

    def __init__(
        self,
        images: Images,
        card: DataCard,
        *,
        augment: trial.Augment | cards.Augment | None,
        batch_size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.device = torch.device(device)
        self.images_NHWC = images.images.permute(0, 2, 3, 1).contiguous().to(self.device)
        self.labels = images.labels.to(self.device)
        self.indices = torch.arange(len(images.labels), device=self.device)
        self.augment = augment or card.augment
        self.batch_size = batch_size
        self.seed = seed
        self._shift = (torch.tensor(card.mean) * 255).to(self.device)
        self._scale = (1 / (torch.tensor(card.std) * 255)).to(self.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, epoch: int, stage: str = "train") -> Iterator[Batch]:
        """Training batches of one epoch of a training stage: shuffled, augmented, the same whenever asked again."""
        rows = self._order(epoch, stage)
        draws = draw(len(rows), self.augment, derive(self.seed, f"augment/{stage}", epoch)).to(self.device)
        for number in range(len(self)):
            part = slice(number * self.batch_size, (number + 1) * self.batch_size)
            pixels = shift_and_flip(self.images_NHWC[rows[part]], draws.part(part), self.augment.pad)
            yield self._batch(pixels, rows[part])

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """Every image once, in order, not augmented: for evaluation."""
        for start in range(0, len(self.labels), batch_size):
            part = slice(start, start + batch_size)
            yield self._batch(self.images_NHWC[part], part)

    def of_classes(self, classes: int, each: int) -> Batch:
        """The first `each` images of each of the first `classes` classes, not augmented."""
        rows = [torch.nonzero(self.labels == label)[:each, 0] for label in self.labels.unique()[:classes]]
        return self._batch(self.images_NHWC[torch.cat(rows)], torch.cat(rows))

    def _order(self, epoch: int, stage: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, f"order/{stage}", epoch))
        return torch.randperm(len(self.labels), generator=generator).to(self.device)

    def _batch(self, pixels_BHWC: Tensor, rows: Tensor | slice) -> Batch:
        image_BHWC = pixels_BHWC.float().sub_(self._shift).mul_(self._scale)
        return Batch(image_BHWC.permute(0, 3, 1, 2), self.labels[rows], self.indices[rows])


class Draws(NamedTuple):
    """The random part of an augmentation, for N images."""

    offset: Tensor
    """(N, 2), int64: first row and column of the crop within the padded image"""
    flip: Tensor
    """(N,), bool"""

    def part(self, part: slice) -> Draws:
        """The draws of one batch."""
        return Draws(self.offset[part], self.flip[part])

    def to(self, device: torch.device) -> Draws:
        """The same on another device."""
        return Draws(self.offset.to(device), self.flip.to(device))


def draw(count: int, augment: trial.Augment | cards.Augment, seed: int) -> Draws:
    """Crop offsets and flips for `count` images, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randint(0, 2 * augment.pad + 1, (count, 2), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator).bool() & augment.flip
    return Draws(offset, flip)


def shift_and_flip(images_BHWC: Tensor, draws: Draws, pad: int) -> Tensor:
    """Zero-pad raw pixels, crop back to size at the drawn offsets, mirror where drawn.

    One gather: pixel (y, x) of the result is pixel (y + offset_y, x' + offset_x) of the padded image, x' = W - 1 - x
    when mirrored. Whole pixels are rows of a (B · H' · W', C) matrix, so one row index moves all channels.
    """
    batch, height, width, channels = images_BHWC.shape
    padded = F.pad(images_BHWC, (0, 0, pad, pad, pad, pad))
    y = torch.arange(height, device=padded.device)
    x = torch.arange(width, device=padded.device)
    x_BW = torch.where(draws.flip[:, None], width - 1 - x, x) + draws.offset[:, 1:]
    y_BH = y + draws.offset[:, :1] + padded.shape[1] * torch.arange(batch, device=padded.device)[:, None]
    pixel_BHW = (y_BH * padded.shape[2])[:, :, None] + x_BW[:, None, :]
    return padded.view(-1, channels)[pixel_BHW.view(-1)].view(batch, height, width, channels)
