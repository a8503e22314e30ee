"""The contact sheet, by its pixels: what it shows is what the data set holds and what training batches hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from otkd.core.augment import Augment
from otkd.core.cards import DataCard
from otkd.core.output import Batch, Mixed
from otkd.core.trial import Data
from otkd.data import sheet
from otkd.data.pipeline import Images, Splits, prepare
from otkd.data.sheet import GAP, LINE, contact_sheet, first_of_classes

SIDE, SCALE = 7, 19
"""Of the made-up images, and by how much they are scaled up: 7 × 19 is the first multiple from 128 on."""
CARD = DataCard(
    classes=5,
    channels=3,
    side=SIDE,
    train=23,
    test=0,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    augment=Augment(),
    about="made up",
)


def splits(classes: int = 5, channels: int = 3) -> Splits:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (23, SIDE, SIDE, channels), dtype=torch.uint8, generator=generator)
    images = Images(pixels, (torch.arange(23) // 2) % classes, torch.arange(23))
    return Splits(images, None, images, CARD)


def drawn(augment: Augment, made: Splits | None = None, **options: int) -> Image.Image:
    return contact_sheet(Data(name="digits", augment=augment), made or splits(), **options)


def cell(picture: Image.Image, row: int, column: int) -> np.ndarray:
    """The image (H, W, 3) at a place of the sheet, scaled down to its own size again."""
    side = SIDE * SCALE
    left, top = GAP + column * (side + GAP), LINE + row * (side + LINE + GAP)
    pixels = np.asarray(picture)[top : top + side, left : left + side]
    small = pixels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    assert np.array_equal(small.repeat(SCALE, 0).repeat(SCALE, 1), pixels)
    return small


def test_first_column_is_the_source() -> None:
    made = splits()
    picture = drawn(Augment(flip=True), made, images=4, versions=1)
    side = SIDE * SCALE
    assert picture.size == (GAP + 2 * (side + GAP), LINE + 4 * (side + LINE + GAP))
    for row, source in enumerate((0, 2, 4, 6)):
        assert np.array_equal(cell(picture, row, 0), made.train.source[source].numpy())


def test_other_columns_are_augmented() -> None:
    """Truth: a flip alone gives the image or its mirror image, each of them sometimes."""
    picture = drawn(Augment(flip=True), images=5, versions=6)
    mirrored = 0
    for row in range(5):
        plain = cell(picture, row, 0)
        for column in range(1, 7):
            shown = cell(picture, row, column)
            same, mirror = np.array_equal(shown, plain), np.array_equal(shown, plain[:, ::-1])
            assert same != mirror
            mirrored += mirror
    assert 8 < mirrored < 22


def test_the_same_file_each_time(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in ("one", "again", "other")]
    state = torch.get_rng_state()
    for file, seed in zip(files, (3, 3, 4), strict=True):
        drawn(Augment(pad=2, flip=True), images=5, versions=3, seed=seed).save(file)
    assert torch.equal(torch.get_rng_state(), state)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_views_stand_beside_each_other() -> None:
    picture = drawn(Augment(pad=3, views=2), images=3, versions=5)
    plain = drawn(Augment(pad=3), images=3, versions=5)
    assert picture.size == plain.size
    cells = [cell(picture, 1, column).tobytes() for column in range(6)]
    assert len(set(cells)) > 3


def test_labels_stand_below(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(sheet, "_drawn", lambda rows, card: texts.extend(c.text for row in rows for c in row))
    drawn(Augment(), images=4, versions=2)
    assert texts == [label for label in "0123" for _ in range(3)]


def test_mixed_images_have_both_labels() -> None:
    target, other = torch.tensor([3, 99]), torch.tensor([7, 12])
    batch = Batch(torch.zeros(2, 3, 4, 4), target, torch.arange(2), Mixed(other, torch.tensor(0.816)))
    assert [sheet._text(batch, place) for place in range(2)] == ["3: 82% + 7: 18%", "99: 82% + 12: 18%"]


def test_mixed_images_are_mixed() -> None:
    """Truth: with CutMix alone each pixel is that of one of the images of the sheet, at its place."""
    picture = drawn(Augment(cutmix=1.0), images=3, versions=4)
    sources = np.stack([cell(picture, row, 0) for row in range(3)])
    cells = [cell(picture, row, column) for row in range(3) for column in range(1, 5)]
    for shown in cells:
        assert (shown == sources).all(-1).any(0).all()
    assert sum(not (shown == sources).all((1, 2, 3)).any() for shown in cells) > 2


def test_fewer_classes_than_images() -> None:
    chosen = first_of_classes(splits(classes=2).train, 5)
    assert chosen.labels.tolist()[:2] == [0, 1]
    assert len(set(chosen.indices.tolist())) == 5
    assert torch.equal((chosen.indices // 2) % 2, chosen.labels)
    assert len(first_of_classes(splits().train, 100).labels) == 23


def test_grey_images_of_a_limited_set(tmp_path: Path) -> None:
    """The digits that a trial with this `limit` would see."""
    data = Data(name="digits", limit=50, val=10)
    made = prepare(data, data_dir=None, cache_dir=tmp_path)
    picture = np.asarray(contact_sheet(data, made, images=10, versions=1))
    assert (picture[..., 0] == picture[..., 2]).all()
    for row in range(10):
        first = made.train.indices[torch.nonzero(made.train.labels == row)[0, 0]]
        top = LINE + row * (128 + LINE + GAP)
        shown = picture[top : top + 128 : 16, GAP : GAP + 128 : 16, 0]
        assert np.array_equal(shown, made.train.source[first, ..., 0])
