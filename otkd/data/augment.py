"""Augmentation of whole batches, on the device. Every number that is drawn is drawn on the CPU, from one generator.

A batch passes through `augment` as raw pixels, is normalised, and then passes through `finish` and `mix`. What each
operation does is what torchvision.transforms.v2 does, but for whole batches in which every image has draws of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from otkd.core.augment import Augment
from otkd.core.output import Mixed
from otkd.data.colours import apply_jitter
from otkd.data.crops import ATTEMPTS, boxes, crop_and_resize, sent, shift_and_flip
from otkd.data.policies import apply_policy, draw_policy


class Draws(NamedTuple):
    """The random part of an augmentation, for B images; tensors on the CPU, None for what is switched off."""

    offset_B2: Tensor
    """int64: first row and column of the crop within the padded image"""
    flip_B: Tensor
    """bool"""
    crop_BR: Tensor | None = None
    """What decides on resized crops, see `otkd.data.crops.boxes`."""
    policy_BO2: Tensor | None = None
    """int64: operations of a policy, places in `otkd.data.policies.OPS`, and their strength and direction, -30 … 30."""
    jitter_B8: Tensor | None = None
    """Four numbers whose ascending order is that of `otkd.data.colours.STEPS`, and where in its span each factor is."""
    hole_B2: Tensor | None = None
    """Row and column of the cut-out square's centre, as shares of height and width."""
    partner_B: Tensor | None = None
    """Numbers whose ascending order says which image each is mixed with."""
    mix_4: Tensor | None = None
    """Of the whole batch: what decides on the share, on mixup or CutMix, and on the box's centre (row, column)."""


def draw(count: int, config: Augment, generator: torch.Generator) -> Draws:
    """Everything that is random about a batch of `count` images."""
    offset_B2, flip_B = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    if config.pad:
        offset_B2 = torch.randint(0, 2 * config.pad + 1, (count, 2), generator=generator)
    if config.flip:
        flip_B = torch.randint(0, 2, (count,), generator=generator).bool()
    draws = Draws(offset_B2, flip_B)
    if config.resized_crop:
        draws = draws._replace(crop_BR=torch.rand((count, 2 * ATTEMPTS + 2), generator=generator))
    if config.policy:
        draws = draws._replace(policy_BO2=draw_policy(count, config.policy, generator))
    if config.jitter:
        draws = draws._replace(jitter_B8=torch.rand((count, 8), generator=generator))
    if config.cutout:
        draws = draws._replace(hole_B2=torch.rand((count, 2), generator=generator))
    if config.mixes:
        partner_B, mix_4 = torch.rand(count + 4, generator=generator).split([count, 4])
        draws = draws._replace(partner_B=partner_B, mix_4=mix_4)
    return draws


def select(draws: Draws, rows: Tensor) -> Draws:
    """The draws of some of the images."""
    of_images = {name: drawn[rows] for name, drawn in draws._asdict().items() if drawn is not None and name != "mix_4"}
    return draws._replace(**of_images)


def augment(pixels_BHWC: Tensor, draws: Draws, config: Augment, *, cropped: bool) -> Tensor:
    """Raw pixels (uint8) as the network shall see them, but for their scale.

    Args:
        cropped: the resized crop has been made as the images were read.

    Raises:
        DataError: a policy or jitter is asked for, and the images have neither 1 nor 3 channels.
    """
    if config.resized_crop and draws.crop_BR is not None and not cropped:
        box_B4 = boxes(draws.crop_BR, config.resized_crop, *pixels_BHWC.shape[1:3])
        pixels_BHWC = crop_and_resize(pixels_BHWC, sent(box_B4, pixels_BHWC))
    pixels_BHWC = shift_and_flip(pixels_BHWC, draws.offset_B2, draws.flip_B, config.pad)
    if config.policy and draws.policy_BO2 is not None:
        pixels_BHWC = apply_policy(pixels_BHWC, draws.policy_BO2, config.policy)
    if config.jitter and draws.jitter_B8 is not None:
        pixels_BHWC = apply_jitter(pixels_BHWC, draws.jitter_B8, config.jitter)
    return pixels_BHWC


def finish(image_BCHW: Tensor, draws: Draws, config: Augment) -> Tensor:
    """Normalised images with a square set to the mean (DeVries & Taylor 2017); beyond the border it is cut off.

    An odd side is kept, as in the paper; the authors' release makes it even.
    """
    if draws.hole_B2 is None:
        return image_BCHW
    size_2 = torch.tensor(image_BCHW.shape[2:])
    first_B2 = sent((draws.hole_B2 * size_2).long() - config.cutout // 2, image_BCHW)
    inside = []
    for axis, size in enumerate(image_BCHW.shape[2:]):
        place_BS = torch.arange(size, device=image_BCHW.device) - first_B2[:, axis, None]
        inside.append((place_BS >= 0) & (place_BS < config.cutout))
    hole_B1HW = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole_B1HW, 0, image_BCHW)


def mix(image_BCHW: Tensor, target_B: Tensor, draws: Draws, config: Augment) -> tuple[Tensor, Mixed | None]:
    """Images mixed with others of their batch, and whose labels these have.

    As in torchvision, one share for the whole batch, and where both are switched on a coin decides on mixup (Zhang et
    al. 2018) or CutMix (Yun et al. 2019), whose share is that of the pixels that stay.
    """
    if draws.partner_B is None or draws.mix_4 is None:
        return image_BCHW, None
    of_share, coin, *centre = draws.mix_4.tolist()
    partner_B = sent(draws.partner_B.argsort(stable=True), image_BCHW)
    if config.mixup and not (config.cutmix and coin >= 0.5):
        share = beta_quantile(config.mixup, of_share)
        image = torch.lerp(image_BCHW[partner_B], image_BCHW, share)
    else:
        rows, columns = _hole(beta_quantile(config.cutmix, of_share), centre, image_BCHW.shape[2:])
        image = image_BCHW.clone()
        image[:, :, rows, columns] = image_BCHW[:, :, rows, columns][partner_B]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / image[0, 0].numel()
    return image, Mixed(target_B[partner_B], torch.full((), share, device=image.device))


def beta_quantile(alpha: float, uniform: float) -> float:
    """What a share `uniform` of all draws from Beta(α, α) lies below."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, uniform))


def _hole(share: float, centre: list[float], size: torch.Size) -> tuple[slice, slice]:
    """CutMix's box: a share 1 - `share` of the area, less what lies beyond the border."""

    def along(at: float, side: int) -> slice:
        half, middle = int(0.5 * math.sqrt(1 - share) * side), int(at * side)
        return slice(max(middle - half, 0), min(middle + half, side))

    return along(centre[0], size[0]), along(centre[1], size[1])
