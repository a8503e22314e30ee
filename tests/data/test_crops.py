"""Crops in batch, against torchvision's of single images and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from otkd.core.augment import Augment, ResizedCrop
from otkd.data.augment import augment, draw
from otkd.data.crops import box, boxes, crop_and_resize, shift_and_flip

from .pictures import difference, generator, one, pixels


@pytest.mark.parametrize(
    ("height", "width", "config"),
    [
        (32, 32, ResizedCrop()),
        (13, 17, ResizedCrop()),
        (61, 23, ResizedCrop(scale=(0.3, 1.0))),
        (9, 40, ResizedCrop(scale=(0.2, 0.9), ratio=(0.5, 3.0))),
    ],
)
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, config: ResizedCrop) -> None:
    ours = boxes(torch.rand(3000, 22, generator=generator(4)), config, height, width)
    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawn = [RandomResizedCrop.get_params(image, list(config.scale), list(config.ratio)) for _ in range(3000)]
    theirs = torch.tensor(drawn)
    for side in range(4):
        assert stats.ks_2samp(ours[:, side], theirs[:, side]).pvalue > 1e-3, side
    # and of pairs: a place that does not go with its size would pass the above
    room = torch.tensor([height, width])
    for axis in range(2):
        left = [b[:, axis] / (room[axis] - b[:, 2 + axis]).clamp(min=1) for b in (ours.double(), theirs.double())]
        assert stats.ks_2samp(*left).pvalue > 1e-3, axis
    shapes = [b[:, 3] / b[:, 2] for b in (ours.double(), theirs.double())]
    assert stats.ks_2samp(*shapes).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(5, 40), (40, 5)])
def test_the_middle_is_taken_where_nothing_fits(height: int, width: int) -> None:
    config = ResizedCrop(scale=(1.0, 1.0))
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], list(config.ratio))
    assert boxes(torch.rand(3, 22, generator=generator()), config, height, width).tolist() == [list(expected)] * 3


def test_the_first_that_fits_is_taken() -> None:
    """Worked out by hand: the whole area at 4:1 does not fit into 8 × 8, a quarter of it at 1:1 is 4 × 4."""
    crop_R = torch.zeros(22)
    crop_R[0:20:2], crop_R[1:20:2] = 1.0, 1.0
    crop_R[4], crop_R[5] = 0.0, 0.5
    crop_R[20:] = torch.tensor([0.999, 0.5])
    config = ResizedCrop(scale=(0.25, 1.0), ratio=(0.25, 4.0))
    assert box(crop_R, config, 8, 8) == (4, 2, 4, 4)


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0.01, 1), st.floats(0.2, 5), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_boxes_lie_within_the_image(height: int, width: int, least: float, ratio: float, seed: int) -> None:
    config = ResizedCrop(scale=(least, 1.0), ratio=(ratio, 1.5 * ratio))
    crop_BR = torch.rand(20, 22, generator=generator(seed))
    crop_BR[0], crop_BR[1] = 0, 1 - 2**-24
    made = boxes(crop_BR, config, height, width)
    top, left, rows, columns = made.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (rows > 0).all()
    assert (columns > 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    assert box(crop_BR[7], config, height, width) == tuple(made[7].tolist())


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_torchvisions(channels: int) -> None:
    data = pixels(40, channels)
    box_B4 = boxes(torch.rand(40, 22, generator=generator()), ResizedCrop(scale=(0.01, 1.0)), 13, 17)
    box_B4[0], box_B4[1] = torch.tensor([0, 0, 13, 17]), torch.tensor([12, 16, 1, 1])
    ours = crop_and_resize(data, box_B4)
    assert ours.dtype == torch.uint8
    for image, drawn, made in zip(data, box_B4.tolist(), ours, strict=True):
        expected = one(image, lambda x, drawn=drawn: tv.resized_crop(x, *drawn, [13, 17], antialias=True))
        assert difference(made, expected) <= 1
    assert torch.equal(ours[0], data[0])


def test_resized_crops_are_made_unless_they_are_made_already() -> None:
    config = Augment(resized_crop=ResizedCrop())
    data, draws = pixels(), draw(11, config, generator())
    assert torch.equal(augment(data, draws, config, cropped=True), data)
    expected = crop_and_resize(data, boxes(draws.crop_BR, ResizedCrop(), 13, 17))
    assert torch.equal(augment(data, draws, config, cropped=False), expected)


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 2, 3]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_shift_and_flip_is_the_slow_one(count: int, height: int, width: int, channels: int, pad: int) -> None:
    """Truth: numpy's pad, slice and reverse, image by image."""
    data, draws = pixels(count, channels, height, width), draw(count, Augment(pad=pad, flip=True), generator(count))
    made = shift_and_flip(data, draws.offset_B2, draws.flip_B, pad)
    for place, ((y, x), flip) in enumerate(zip(draws.offset_B2.tolist(), draws.flip_B.tolist(), strict=True)):
        crop = np.pad(data[place].numpy(), ((pad, pad), (pad, pad), (0, 0)))[y : y + height, x : x + width]
        assert np.array_equal(made[place].numpy(), crop[:, ::-1] if flip else crop)
