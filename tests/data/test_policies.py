"""Policies in batch, against torchvision's of single images."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms.v2 import RandAugment as TheirRandAugment
from torchvision.transforms.v2 import TrivialAugmentWide

from otkd.core.augment import Augment, RandAugment, TrivialAugment
from otkd.data.augment import augment, draw
from otkd.data.policies import BINS, OPS, apply_policy

from .pictures import generator, one, pixels

RAND = RandAugment(name="rand_augment")
TRIVIAL = TrivialAugment(name="trivial_augment")
NAMES = [op.name for op in OPS]
STEPWISE = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Solarize")


def theirs(config: RandAugment | TrivialAugment) -> TheirRandAugment | TrivialAugmentWide:
    return TheirRandAugment() if isinstance(config, RandAugment) else TrivialAugmentWide()


def their_magnitude(transform: TheirRandAugment | TrivialAugmentWide, name: str, strength: int) -> float:
    space, signed = transform._AUGMENTATION_SPACE[name]
    magnitudes = space(BINS + 1, 23, 29)
    if magnitudes is None:
        return 0.0
    return float(magnitudes[abs(strength)]) * (-1 if signed and strength < 0 else 1)


@pytest.mark.parametrize("config", [RAND, TRIVIAL])
def test_the_operations_are_torchvisions(config: RandAugment | TrivialAugment) -> None:
    assert list(theirs(config)._AUGMENTATION_SPACE) == NAMES


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [RAND, TRIVIAL])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_torchvisions(name: str, config: RandAugment | TrivialAugment, channels: int) -> None:
    """Where pixels move or are compared with a threshold, each is torchvision's at this magnitude or one a little
    (1e-5) smaller or larger: halfway between two pixels, and at the threshold, the last bit decides."""
    transform = theirs(config)
    strengths = [*range(-BINS, BINS + 1, 3), -1, 1, 20, 10]
    data = pixels(len(strengths), channels, 23, 29)
    policy_BO2 = torch.tensor([[[NAMES.index(name), strength]] for strength in strengths])
    made = apply_policy(data, policy_BO2, config)
    for image, strength, ours in zip(data, strengths, made, strict=True):
        magnitude = their_magnitude(transform, name, strength)
        near = (1.0, 1 - 1e-5, 1 + 1e-5) if name in STEPWISE and strength else (1.0,)
        expected = torch.stack(
            [
                one(
                    image,
                    lambda x, m=magnitude * factor: transform._apply_image_or_video_transform(
                        x, name, m, transform.interpolation, transform._fill
                    ),
                )
                for factor in near
            ]
        )
        off = (expected.int() - ours.int()).abs().amin(0).max()
        assert off <= (0 if name in STEPWISE else 1), (strength, off)


@pytest.mark.parametrize("config", [RAND, TRIVIAL])
def test_operations_change_images(config: RandAugment | TrivialAugment) -> None:
    """But for the identity; guards the test above against images that all operations leave alone."""
    data = pixels(11, 3, 23, 29)
    for place, name in enumerate(NAMES):
        changed = not torch.equal(apply_policy(data, torch.tensor([[[place, 29]]] * 11), config), data)
        assert changed == (name != "Identity"), name


def test_operations_come_one_after_the_other() -> None:
    data = pixels(200, 3, 23, 29)
    config = Augment(policy=RandAugment(name="rand_augment", ops=3, magnitude=17))
    draws = draw(200, config, generator())
    assert draws.policy_BO2 is not None
    expected = data
    for step in range(3):
        expected = apply_policy(expected, draws.policy_BO2[:, step : step + 1], config.policy)
    assert torch.equal(augment(data, draws, config, cropped=False), expected)
    assert draws.policy_BO2.shape == (200, 3, 2)


def test_policies_draw_uniformly() -> None:
    rand = draw(3000, Augment(policy=RandAugment(name="rand_augment", magnitude=7)), generator()).policy_BO2
    trivial = draw(6000, Augment(policy=TRIVIAL), generator()).policy_BO2
    assert rand is not None
    assert trivial is not None
    assert rand.shape == (3000, 2, 2)
    assert trivial.shape == (6000, 1, 2)
    for op in (rand[:, 0, 0], rand[:, 1, 0], trivial[..., 0].flatten()):
        assert stats.chisquare(op.bincount(minlength=len(OPS))).pvalue > 1e-3
    assert rand[..., 1].unique().tolist() == [-7, 7]
    for strength in (rand[..., 1], trivial[..., 1][trivial[..., 1] != 0]):
        assert stats.binomtest(int((strength > 0).sum()), strength.numel()).pvalue > 1e-3
    assert stats.chisquare(trivial[..., 1].abs().flatten().bincount(minlength=BINS + 1)).pvalue > 1e-3
    pairs = len(OPS) * rand[:, 0, 0] + rand[:, 1, 0]
    assert stats.chisquare(pairs.bincount(minlength=len(OPS) ** 2)).pvalue > 1e-3
