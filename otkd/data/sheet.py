"""A contact sheet: some training images as they are, and as training sees them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from otkd.core.cards import DataCard
from otkd.core.output import Batch
from otkd.core.trial import Data
from otkd.data.batches import Batches
from otkd.data.pipeline import Images, Splits

LEAST = 128
"""Pixels a side that an image has on the sheet at least; small ones are scaled up by a whole number."""
GAP = 6
"""Pixels between images."""
LINE = 16
"""Pixels of a line of text."""


class Cell(NamedTuple):
    """One picture of the sheet."""

    pixels_HWC: NDArray[np.uint8]
    text: str


def contact_sheet(data: Data, splits: Splits, *, images: int = 8, versions: int = 5, seed: int = 0) -> Image.Image:
    """A row for each of some images: as it is, then as it comes out of the training batches of one epoch after another.

    Args:
        data: says the augmentation.
        splits: what `otkd.data.pipeline.prepare` made of `data`.
        images: how many, at least 2, of different classes as far as there are so many.
        versions: augmented versions of each.
        seed: that of the batches.

    Raises:
        DataError: an image cannot be decoded.
    """
    chosen = first_of_classes(splits.train, images)
    count = len(chosen.labels)
    batches = Batches(
        chosen, splits.card, augment=data.augment, batch_size=count, seed=seed, device="cpu", skip=data.skip
    )
    rows: list[list[Cell]] = [[] for _ in range(count)]
    for batch in batches.ordered(count):
        _append(rows, batch, splits.card)
    for epoch in range(1, versions + 1):
        for batch in batches.epoch(epoch):
            _append(rows, batch, splits.card)
    return _drawn([row[: 1 + versions] for row in rows], splits.card)


def first_of_classes(images: Images, count: int) -> Images:
    """The first image of each of the first `count` classes; where there are fewer, other images fill up."""
    labels_N = images.labels.numpy()
    _, first = np.unique(labels_N, return_index=True)
    others = np.setdiff1d(np.arange(len(labels_N)), first)
    places = torch.from_numpy(np.concatenate([first, others])[:count])
    return Images(images.source, images.labels[places], images.indices[places])


def _append(rows: list[list[Cell]], batch: Batch, card: DataCard) -> None:
    """Add each image of a batch to the row of the sheet that it belongs to."""
    pixels_BHWC = _visible(batch.image, card)
    for place, index in enumerate(batch.indices.tolist()):
        rows[index].append(Cell(pixels_BHWC[place], _text(batch, place)))


def _visible(image_BCHW: Tensor, card: DataCard) -> NDArray[np.uint8]:
    """Normalised images as pixels (B, H, W, C) again."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean, card.std))
    pixels_BCHW = ((image_BCHW.float() * std + mean) * 255).round().clamp(0, 255)
    visible: NDArray[np.uint8] = pixels_BCHW.permute(0, 2, 3, 1).to(torch.uint8).numpy()
    return visible


def _text(batch: Batch, place: int) -> str:
    """The label of an image, or both with their shares in percent."""
    own = int(batch.target[place])
    if batch.mixed is None:
        return str(own)
    share = float(batch.mixed.share)
    return f"{own}: {share:.0%} + {int(batch.mixed.target[place])}: {1 - share:.0%}"


def _drawn(rows: list[list[Cell]], card: DataCard) -> Image.Image:
    side = card.side * -(-LEAST // card.side)
    columns = max(map(len, rows))
    size = (GAP + columns * (side + GAP), LINE + len(rows) * (side + LINE + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column in range(columns):
        heading = f"augmented, {column}" if column else "as it is"
        draw.text((GAP + column * (side + GAP), 2), heading, "black", font)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            left, top = GAP + x * (side + GAP), LINE + y * (side + LINE + GAP)
            sheet.paste(_picture(cell.pixels_HWC, side), (left, top))
            draw.text((left, top + side + 2), cell.text, "black", font)
    return sheet


def _picture(pixels_HWC: NDArray[np.uint8], side: int) -> Image.Image:
    grey = pixels_HWC.shape[2] == 1
    picture = Image.fromarray(pixels_HWC[..., 0] if grey else pixels_HWC)
    return picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
