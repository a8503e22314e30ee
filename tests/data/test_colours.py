"""Changes of colour in batch, against torchvision's of single images and against definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from otkd.core.augment import Augment, Jitter
from otkd.data.augment import draw
from otkd.data.colours import STEPS, apply_jitter

from .pictures import difference, generator, one, pixels

THEIRS = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_torchvisions(name: str, channels: int) -> None:
    data = torch.cat([pixels(13, channels), torch.randint(0, 256, (3, 13, 17, channels), generator=generator())]).byte()
    data[3, :4] = 255
    data[4, :4] = 0
    factor_B = torch.linspace(-0.5, 0.5, 16) if name == "hue" else torch.linspace(0, 2.5, 16)
    made = STEPS[name](data, factor_B)
    for image, factor, ours in zip(data, factor_B.tolist(), made, strict=True):
        expected = one(image, lambda x, factor=factor: THEIRS[name](x, factor))
        assert difference(ours, expected) <= (2 if name == "hue" else 1)


def test_hues_own_their_place_on_the_circle() -> None:
    """A third of the circle takes red to green, green to blue, blue to red; half of it to the complement."""
    pure = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8).view(3, 1, 1, 3)
    assert torch.equal(STEPS["hue"](pure, torch.full((3,), 1 / 3)), pure.roll(-1, 0))
    assert torch.equal(STEPS["hue"](pure, torch.full((3,), 0.5)), 255 - pure)


def test_steps_come_in_the_drawn_order() -> None:
    config = Jitter(brightness=0.9, contrast=0.8, saturation=0.7, hue=0.3)
    data, jitter_B8 = pixels(), torch.rand(11, 8, generator=generator())
    low, high = torch.tensor([0.1, 0.2, 0.3, -0.3]), torch.tensor([1.9, 1.8, 1.7, 0.3])
    made = apply_jitter(data, jitter_B8, config)
    for image, drawn, ours in zip(data, jitter_B8, made, strict=True):
        factors = (low + (high - low) * drawn[4:]).tolist()
        expected = image.permute(2, 0, 1)
        for step in drawn[:4].argsort().tolist():
            expected = THEIRS[list(STEPS)[step]](expected, factors[step])
        assert difference(ours, expected.permute(1, 2, 0)) <= 6  # a level or two a step, enlarged by those after it
    reversed_ = torch.cat([1 - jitter_B8[:, :4], jitter_B8[:, 4:]], 1)
    assert difference(made, apply_jitter(data, reversed_, config)) > 20


def test_steps_that_are_off_are_left_out() -> None:
    data, jitter_B8 = pixels(), torch.rand(11, 8, generator=generator())
    factor_B = 0.5 + jitter_B8[:, 5]
    expected = STEPS["contrast"](data, factor_B)
    assert torch.equal(apply_jitter(data, jitter_B8, Jitter(contrast=0.5)), expected)
    assert torch.equal(apply_jitter(data, jitter_B8, Jitter()), data)


def test_factors_are_never_below_nought() -> None:
    """A tenth of the way from 0 to 4, not from -2 to 4."""
    made = apply_jitter(pixels(), torch.full((11, 8), 0.1), Jitter(brightness=3.0))
    assert torch.equal(made, STEPS["brightness"](pixels(), torch.full((11,), 0.4)))


def test_orders_are_equally_likely() -> None:
    draws = draw(4800, Augment(jitter=Jitter(hue=0.1)), generator())
    assert draws.jitter_B8 is not None
    code_B = (draws.jitter_B8[:, :4].argsort(1) * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code_B.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


@given(st.floats(0, 3), st.integers(0, 255))
def test_saturation_leaves_grey_images_as_they_are(factor: float, level: int) -> None:
    grey = torch.full((1, 3, 5, 1), level, dtype=torch.uint8)
    assert torch.equal(STEPS["saturation"](grey, torch.tensor([factor])), grey)
