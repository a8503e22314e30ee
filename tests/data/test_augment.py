"""Augmentation in batch, against torchvision's transforms of single images and against definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import RandAugment as TheirRandAugment
from torchvision.transforms.v2 import TrivialAugmentWide
from torchvision.transforms.v2 import functional as tv

from otkd.core.augment import Augment, Jitter, RandAugment, ResizedCrop, TrivialAugment
from otkd.core.errors import DataError
from otkd.data.augment import (
    BINS,
    OPS,
    STEPS,
    Draws,
    apply_jitter,
    apply_policy,
    augment,
    beta_quantile,
    box,
    boxes,
    crop_and_resize,
    draw,
    finish,
    mix,
    select,
    shift_and_flip,
)

RAND = RandAugment(name="rand_augment")
TRIVIAL = TrivialAugment(name="trivial_augment")
EVERYTHING = Augment(
    flip=True,
    resized_crop=ResizedCrop(),
    policy=RAND,
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    cutout=5,
    mixup=0.2,
    cutmix=1.0,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 11, channels: int = 3, height: int = 13, width: int = 17) -> Tensor:
    """Smooth images with some noise, so that blurring and stretching mean something."""
    made = torch.rand(count, channels, 4, 5, generator=generator(1))
    smooth = torch.nn.functional.interpolate(made, (height, width), mode="bilinear")
    noise = 0.1 * torch.rand(smooth.shape, generator=generator(2))
    return (255 * (smooth + noise).clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def images(count: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised images, channels last."""
    return torch.randn(count, 13, 17, 3, generator=generator(3)).to(dtype).permute(0, 3, 1, 2)


def one(pixels_HWC: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(pixels_HWC.permute(2, 0, 1)).permute(1, 2, 0)


def difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


# Draws


def test_draws_are_the_generators_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (draw(9, EVERYTHING, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[1:], other[1:], strict=True)), "it shifts nothing"


def test_nothing_is_drawn_for_what_is_off() -> None:
    used = generator()
    draws = draw(9, Augment(), used)
    assert torch.equal(used.get_state(), generator().get_state())
    assert not draws.offset_B2.any()
    assert not draws.flip_B.any()
    assert all(drawn is None for drawn in draws[2:])


def test_crops_and_flips_do_not_depend_on_what_comes_later() -> None:
    plain = draw(9, Augment(pad=2, flip=True), generator())
    more = draw(9, EVERYTHING.model_copy(update={"pad": 2, "resized_crop": None}), generator())
    assert torch.equal(plain.offset_B2, more.offset_B2)
    assert torch.equal(plain.flip_B, more.flip_B)


def test_select_keeps_images_together_and_the_batch_whole() -> None:
    draws, rows = draw(9, EVERYTHING, generator()), torch.tensor([7, 2, 3])
    for name, drawn in select(draws, rows)._asdict().items():
        expected = getattr(draws, name)
        assert torch.equal(drawn, expected if name == "mix_4" else expected[rows]), name
    assert select(draw(9, Augment(), generator()), rows).crop_BR is None


def test_augmented_images_do_not_depend_on_the_others() -> None:
    config = EVERYTHING.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    data, draws, rows = pixels(), draw(11, config, generator()), torch.tensor([9, 0, 4])
    whole, part = (augment(x, d, config, cropped=False) for x, d in ((data, draws), (data[rows], select(draws, rows))))
    assert difference(whole[rows], part) <= 1
    assert whole.shape == data.shape
    assert whole.dtype == torch.uint8


@pytest.mark.parametrize("config", [Augment(), Augment(flip=True), EVERYTHING])
def test_the_given_pixels_stay_as_they_are(config: Augment) -> None:
    data = pixels()
    before = data.clone()
    augment(data, draw(11, config, generator()), config, cropped=False)
    assert torch.equal(data, before)


# Crops


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


# Colours

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


@pytest.mark.parametrize("config", [Augment(jitter=Jitter(hue=0.1)), Augment(policy=TRIVIAL)])
def test_two_channels_have_no_colours(config: Augment) -> None:
    with pytest.raises(DataError, match=r"augment\.(jitter|policy).*1 or 3 channels\. Got 2\. Leave"):
        augment(pixels(channels=2), draw(11, config, generator()), config, cropped=False)


# Policies

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


# Cutout


@pytest.mark.parametrize("side", [1, 4, 5, 40])
def test_cutout_is_a_square_about_its_centre(side: int) -> None:
    image, config = images(), Augment(cutout=side)
    draws = draw(7, config, generator())
    made = finish(image, draws, config)
    expected = image.clone()
    for place, (v, u) in enumerate(draws.hole_B2.tolist()):
        top, left = int(v * 13) - side // 2, int(u * 17) - side // 2
        expected[place, :, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    assert torch.equal(made, expected)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_every_pixel_is_cut_out_equally_often() -> None:
    config = Augment(cutout=1)
    made = finish(torch.ones(6000, 1, 5, 7), draw(6000, config, generator()), config)
    assert stats.chisquare((made == 0).sum((0, 1)).flatten()).pvalue > 1e-3


def test_no_cutout_is_free() -> None:
    image = images()
    assert finish(image, draw(7, Augment(), generator()), Augment()) is image


# Mixing


def drawn_mix(config: Augment, count: int = 7, seed: int = 0) -> Draws:
    return draw(count, config, generator(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixup_is_the_weighted_mean(dtype: torch.dtype) -> None:
    image, target = images(dtype=dtype), torch.arange(7) * 3
    draws = drawn_mix(Augment(mixup=0.7))
    made, mixed = mix(image, target, draws, Augment(mixup=0.7))
    assert mixed is not None
    share = stats.beta(0.7, 0.7).ppf(float(draws.mix_4[0]))
    assert float(mixed.share) == pytest.approx(share)
    partner = mixed.target // 3
    assert sorted(partner.tolist()) == list(range(7))
    assert partner.tolist() != list(range(7))
    expected = share * image.double() + (1 - share) * image.double()[partner]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)
    assert (made.dtype, mixed.share.dtype, mixed.share.shape) == (dtype, torch.float32, ())
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_keeps_the_share_of_its_pixels(seed: int) -> None:
    """Truth: the box of torchvision's CutMix, worked out from the same numbers."""
    config, count = Augment(cutmix=1.0), 7
    image, target, draws = images(), torch.arange(count), drawn_mix(Augment(cutmix=1.0), seed=seed)
    before = image.clone()
    made, mixed = mix(image, target, draws, config)
    assert mixed is not None
    share, _, v, u = draws.mix_4.tolist()  # of Beta(1, 1) each number is its own quantile
    half = [int(0.5 * (1 - share) ** 0.5 * side) for side in (13, 17)]
    middle = [int(v * 13), int(u * 17)]
    inside = torch.zeros(13, 17, dtype=torch.bool)
    inside[
        max(middle[0] - half[0], 0) : min(middle[0] + half[0], 13),
        max(middle[1] - half[1], 0) : min(middle[1] + half[1], 17),
    ] = True
    assert torch.equal(made, torch.where(inside, image[mixed.target], image))
    assert float(mixed.share) == pytest.approx(1 - inside.double().mean().item())
    assert torch.equal(image, before)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_a_coin_decides_between_both() -> None:
    config = Augment(mixup=1.0, cutmix=1.0)
    image, target = images(), torch.arange(7)
    cut = []
    for seed in range(200):
        draws = drawn_mix(config, seed=seed)
        made, mixed = mix(image, target, draws, config)
        alone = Augment(cutmix=1.0) if draws.mix_4[1] >= 0.5 else Augment(mixup=1.0)
        assert mixed is not None
        assert torch.equal(made, mix(image, target, draws, alone)[0])
        cut.append(float(draws.mix_4[1]) >= 0.5)
    assert 70 < sum(cut) < 130


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    shares = [beta_quantile(alpha, uniform) for uniform in torch.rand(2000, generator=generator()).tolist()]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("config", [Augment(mixup=0.2), Augment(cutmix=1.0)])
@pytest.mark.parametrize("rows", [[0], [6, 1], [5, 2, 3, 0]])
def test_images_that_were_dropped_are_nobodys_partner(config: Augment, rows: list[int]) -> None:
    kept = torch.tensor(rows)
    made, mixed = mix(images()[kept], kept, select(drawn_mix(config), kept), config)
    assert mixed is not None
    assert sorted(mixed.target.tolist()) == sorted(rows)
    assert made.shape[0] == len(rows)


def test_nothing_is_mixed_unless_asked() -> None:
    image = images()
    made, mixed = mix(image, torch.arange(7), drawn_mix(Augment()), Augment())
    assert made is image
    assert mixed is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_and_nothing_waits_for_it() -> None:
    data, draws = pixels(), draw(11, EVERYTHING, generator())
    config = EVERYTHING.model_copy(update={"policy": None})
    cuda = data.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = augment(cuda, draws, config, cropped=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert difference(there.cpu(), augment(data, draws, config, cropped=False)) <= 2
