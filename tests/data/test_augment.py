"""What is drawn and what becomes of it, cutout and mixing: against definitions, scipy and torchvision's boxes."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from otkd.core.augment import Augment, Jitter, RandAugment, ResizedCrop, TrivialAugment
from otkd.core.errors import DataError
from otkd.data.augment import Draws, augment, beta_quantile, draw, finish, mix, select

from .pictures import difference, generator, pixels

EVERYTHING = Augment(
    flip=True,
    resized_crop=ResizedCrop(),
    policy=RandAugment(name="rand_augment"),
    jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    cutout=5,
    mixup=0.2,
    cutmix=1.0,
)


def images(count: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalised images, channels last."""
    return torch.randn(count, 13, 17, 3, generator=generator(3)).to(dtype).permute(0, 3, 1, 2)


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


@pytest.mark.parametrize(
    "config", [Augment(jitter=Jitter(hue=0.1)), Augment(policy=TrivialAugment(name="trivial_augment"))]
)
def test_two_channels_have_no_colours(config: Augment) -> None:
    with pytest.raises(DataError, match=r"augment\.(jitter|policy).*1 or 3 channels\. Got 2\. Leave"):
        augment(pixels(channels=2), draw(11, config, generator()), config, cropped=False)


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
