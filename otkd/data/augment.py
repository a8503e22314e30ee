"""Augmentation of whole batches, on the device. Every number that is drawn is drawn on the CPU, from one generator.

A batch passes through `augment` as raw pixels, is normalised, and then passes through `finish` and `mix`. What each
operation does is what torchvision.transforms.v2 does, but for whole batches in which every image has draws of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from otkd.core.augment import Augment, Jitter, RandAugment, ResizedCrop, TrivialAugment
from otkd.core.errors import DataError
from otkd.core.output import Mixed

ATTEMPTS = 10
"""How often a resized crop is drawn before the middle of the image is taken."""
BINS = 30
"""Strength of the strongest operation of a policy; 0 is the weakest."""


class Draws(NamedTuple):
    """The random part of an augmentation, for B images; tensors on the CPU, None for what is switched off."""

    offset_B2: Tensor
    """int64: first row and column of the crop within the padded image"""
    flip_B: Tensor
    """bool"""
    crop_BR: Tensor | None = None
    """What decides on resized crops, see `boxes`."""
    policy_BO2: Tensor | None = None
    """int64: the operations of a policy, places in `OPS`, and their strength and direction, -30 … 30."""
    jitter_B8: Tensor | None = None
    """Four numbers whose ascending order is that of the `STEPS` of a jitter, and where in its span each factor is."""
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
        draws = draws._replace(policy_BO2=_draw_policy(count, config.policy, generator))
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
        pixels_BHWC = crop_and_resize(pixels_BHWC, _sent(box_B4, pixels_BHWC))
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
    first_B2 = _sent((draws.hole_B2 * size_2).long() - config.cutout // 2, image_BCHW)
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
    partner_B = _sent(draws.partner_B.argsort(stable=True), image_BCHW)
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


def _sent(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor from the CPU on another's device, which nothing waits for."""
    return tensor.to(like.device, non_blocking=True)


# Crops


def boxes(crop_BR: Tensor, config: ResizedCrop, height: int, width: int) -> Tensor:
    """Top, left, height and width (B, 4), int64, of the part that each image's draws take of an image of that size.

    Distributed as torchvision's RandomResizedCrop: of ten tries the first that fits, at any place; else the middle.

    Args:
        crop_BR: uniform numbers: ten pairs for area and shape, two for the corner.
    """
    uniform_BR = crop_BR.double()
    area_BA = height * width * _between(config.scale, uniform_BR[:, 0:-2:2])
    ratio_BA = _between((math.log(config.ratio[0]), math.log(config.ratio[1])), uniform_BR[:, 1:-2:2]).exp()
    size_BA2 = torch.stack([(area_BA / ratio_BA).sqrt(), (area_BA * ratio_BA).sqrt()], 2).round().long()
    limit_2 = torch.tensor([height, width])
    fits_BA = ((size_BA2 > 0) & (size_BA2 <= limit_2)).all(2)
    first_B = fits_BA.int().argmax(1)
    middle_2 = torch.tensor(_largest(config.ratio, height, width))
    fitting_B1 = fits_BA.any(1, keepdim=True)
    size_B2 = torch.where(fitting_B1, size_BA2[torch.arange(len(first_B)), first_B], middle_2)
    room_B2 = limit_2 - size_B2
    corner_B2 = torch.where(fitting_B1, (uniform_BR[:, -2:] * (room_B2 + 1)).long(), room_B2 // 2)
    return torch.cat([corner_B2, size_B2], 1)


def box(crop_R: Tensor, config: ResizedCrop, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part that is taken of one image; see `boxes`."""
    top, left, rows, columns = boxes(crop_R[None], config, height, width)[0].tolist()
    return top, left, rows, columns


def crop_and_resize(pixels_BHWC: Tensor, box_B4: Tensor) -> Tensor:
    """The part of each image that its box (`boxes`) holds, stretched to the size of the whole; bilinear, uint8.

    A part is never larger than the image, so smoothing (`antialias`) would change nothing.
    """
    top_B, left_B, height_B, width_B = box_B4.unbind(1)
    tall_BHWC = _stretched(pixels_BHWC, top_B, height_B)
    both_BWHC = _stretched(tall_BHWC.transpose(1, 2), left_B, width_B)
    return both_BWHC.transpose(1, 2).round().to(torch.uint8).contiguous()


def _stretched(image_BSXC: Tensor, first_B: Tensor, count_B: Tensor) -> Tensor:
    """So many lines from the first on, stretched over the whole of dimension 1."""
    size = image_BSXC.shape[1]
    scale_B1 = count_B[:, None] / size
    at_BS = ((torch.arange(size, device=image_BSXC.device) + 0.5) * scale_B1 - 0.5).clamp(min=0)
    below_BS = at_BS.long()
    above_BS = torch.minimum(below_BS + 1, count_B[:, None] - 1)
    image_B1 = torch.arange(len(first_B), device=image_BSXC.device)[:, None]
    below, above = (image_BSXC[image_B1, first_B[:, None] + line_BS].float() for line_BS in (below_BS, above_BS))
    return torch.lerp(below, above, (at_BS - below_BS)[:, :, None, None])


def _between(span: tuple[float, float], uniform: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * uniform


def _largest(ratio: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest part of an image whose shape is allowed."""
    if width < ratio[0] * height:
        return max(1, round(width / ratio[0])), width
    if width > ratio[1] * height:
        return height, max(1, round(height * ratio[1]))
    return height, width


def shift_and_flip(images_BHWC: Tensor, offset_B2: Tensor, flip_B: Tensor, pad: int) -> Tensor:
    """Zero-pad raw pixels, crop back to size at the drawn offsets, mirror where drawn.

    Args:
        images_BHWC: on any device.
        offset_B2: int64, on the CPU: first row and column within the padded images.
        flip_B: bool, on the CPU.
        pad: zero pixels on every side.
    """
    shifted_BHWC = _shifted(images_BHWC, offset_B2, pad) if pad else images_BHWC
    if not flip_B.any():
        return shifted_BHWC
    rows = torch.nonzero(flip_B)[:, 0]
    mirrored = shifted_BHWC.index_select(0, _sent(rows, shifted_BHWC)).flip(2)
    place_B = torch.where(flip_B, len(flip_B) - 1 + flip_B.cumsum(0), torch.arange(len(flip_B)))
    return torch.cat([shifted_BHWC, mirrored]).index_select(0, _sent(place_B, mirrored))


def _shifted(images_BHWC: Tensor, offset_B2: Tensor, pad: int) -> Tensor:
    """Every line of W pixels of the padded images, wherever it begins, is a row of a matrix; crops are rows of it."""
    batch, height, width, channels = images_BHWC.shape
    padded = F.pad(images_BHWC, (0, 0, pad, pad, pad, pad)).contiguous()
    tall, wide = padded.shape[1:3]
    lines_LX = padded.as_strided((batch * tall * wide - width + 1, width * channels), (channels, 1))
    row_BH = torch.arange(height) + offset_B2[:, :1] + tall * torch.arange(batch)[:, None]
    first_BH = row_BH * wide + offset_B2[:, 1:]
    return lines_LX.index_select(0, _sent(first_BH.view(-1), padded)).view_as(images_BHWC)


# Colours


def apply_jitter(pixels_BHWC: Tensor, jitter_B8: Tensor, config: Jitter) -> Tensor:
    """Raw pixels with changed colours, in each image's own order (torchvision's ColorJitter); see `Draws.jitter_B8`.

    Raises:
        DataError: the images have neither 1 nor 3 channels.
    """
    _expect_colours("jitter", pixels_BHWC)
    result = pixels_BHWC.clone()
    for next_B in jitter_B8[:, :4].argsort(dim=1, stable=True).T:
        for step, (name, change) in enumerate(STEPS.items()):
            if getattr(config, name):
                value_B = _between(_span(config, name), jitter_B8[:, 4 + step])
                _change(result, torch.nonzero(next_B == step)[:, 0], change, value_B)
    return result


def _span(config: Jitter, name: str) -> tuple[float, float]:
    strength: float = getattr(config, name)
    return (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)


def _change(pixels_BHWC: Tensor, rows: Tensor, change: Callable[[Tensor, Tensor], Tensor], values_B: Tensor) -> None:
    """Change some of the images, in place, each by its value."""
    if len(rows):
        there = _sent(rows, pixels_BHWC)
        pixels_BHWC[there] = change(pixels_BHWC[there], values_B[rows])


def _expect_colours(what: str, pixels_BHWC: Tensor) -> None:
    channels = pixels_BHWC.shape[3]
    if channels not in (1, 3):
        raise DataError(
            f"augment.{what}: it is defined for grey and colour images alone, with 1 or 3 channels. Got {channels}. "
            f"Leave {what} out."
        )


def brightness(pixels_BHWC: Tensor, factor_B: Tensor) -> Tensor:
    """Raw pixels times a factor."""
    return _blend(pixels_BHWC, 0.0, factor_B)


def contrast(pixels_BHWC: Tensor, factor_B: Tensor) -> Tensor:
    """Raw pixels away from the mean grey of their image by a factor."""
    return _blend(pixels_BHWC, _grey(pixels_BHWC).mean((1, 2, 3), keepdim=True), factor_B)


def saturation(pixels_BHWC: Tensor, factor_B: Tensor) -> Tensor:
    """Raw pixels away from their grey by a factor."""
    return _blend(pixels_BHWC, _grey(pixels_BHWC), factor_B)


def sharpness(pixels_BHWC: Tensor, factor_B: Tensor) -> Tensor:
    """Raw pixels away from the blurred image by a factor."""
    from torchvision.transforms.v2.functional import adjust_sharpness

    blurred_BCHW = adjust_sharpness(pixels_BHWC.permute(0, 3, 1, 2), 0.0)
    return _blend(pixels_BHWC, blurred_BCHW.permute(0, 2, 3, 1), factor_B)


def hue(pixels_BHWC: Tensor, shift_B: Tensor) -> Tensor:
    """Raw pixels with their hue moved round the circle, whose length is 1; grey images stay as they are."""
    if pixels_BHWC.shape[3] == 1:
        return pixels_BHWC
    least, most = (pixels_BHWC.float() / 255).aminmax(dim=3, keepdim=True)
    sixth = _sixths(pixels_BHWC) + 6 * _per_image(shift_B, pixels_BHWC)
    turned = (sixth + _sent(torch.tensor([5.0, 3.0, 1.0]), sixth)) % 6
    level = most - (most - least) * torch.minimum(turned, 4 - turned).clamp(0, 1)
    return (level * 255.999).to(torch.uint8)


def _sixths(pixels_BHWC: Tensor) -> Tensor:
    """Hue (B, H, W, 1) in sixths of the circle: 0 is red, 2 green, 4 blue; 0 for greys."""
    red, green, blue = pixels_BHWC.float().split(1, dim=3)
    least, most = pixels_BHWC.float().aminmax(dim=3, keepdim=True)
    range_ = (most - least).clamp(min=1)
    from_green = torch.where(most == green, (blue - red) / range_ + 2, (red - green) / range_ + 4)
    return torch.where(most == red, (green - blue) / range_, from_green)


def _blend(pixels_BHWC: Tensor, other: Tensor | float, factor_B: Tensor) -> Tensor:
    factor = _per_image(factor_B, pixels_BHWC)
    return (pixels_BHWC * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)


def _grey(pixels_BHWC: Tensor) -> Tensor:
    if pixels_BHWC.shape[3] == 1:
        return pixels_BHWC.float()
    red, green, blue = pixels_BHWC.float().split(1, dim=3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def _per_image(value_B: Tensor, pixels_BHWC: Tensor) -> Tensor:
    return _sent(value_B.float(), pixels_BHWC)[:, None, None, None]


STEPS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
"""What a colour jitter consists of; from raw pixels (B, H, W, C) and factors (B,) on the CPU."""


# Policies


class Op(NamedTuple):
    """One operation of a policy."""

    name: str
    apply: Callable[[Tensor, Tensor], Tensor]
    """From raw pixels (B, H, W, C) and magnitudes (B,), float64, on the CPU."""
    rand: float = 0.0
    """Largest magnitude in RandAugment; of a translation as a share of the image's side."""
    trivial: float = 0.0
    """Largest magnitude in TrivialAugment (wide); of a translation in pixels."""
    signed: bool = False
    """Whether half of the images have the magnitude with a minus."""


def identity(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Raw pixels as they are."""
    return pixels_BHWC


def shear_x(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Every line moved left by so many times its distance from the top border."""
    return _moved(pixels_BHWC, (1, magnitude_B, magnitude_B * (pixels_BHWC.shape[1] / 2)), (0, 1, 0))


def shear_y(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Every column moved up by so many times its distance from the left border."""
    return _moved(pixels_BHWC, (1, 0, 0), (magnitude_B, 1, magnitude_B * (pixels_BHWC.shape[2] / 2)))


def translate_x(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Moved right by whole pixels."""
    return _moved(pixels_BHWC, (1, 0, -magnitude_B.trunc()), (0, 1, 0))


def translate_y(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Moved down by whole pixels."""
    return _moved(pixels_BHWC, (1, 0, 0), (0, 1, -magnitude_B.trunc()))


def rotate(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Turned to the left about the centre by so many degrees."""
    cos_B, sin_B = magnitude_B.deg2rad().cos(), magnitude_B.deg2rad().sin()
    return _moved(pixels_BHWC, (cos_B, -sin_B, 0), (sin_B, cos_B, 0))


def posterize(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """The lowest bits of each pixel cleared, as many as the magnitude rounds to."""
    mask_B = (255 << magnitude_B.round().long()).bitwise_and(255).to(torch.uint8)
    return pixels_BHWC & _sent(mask_B, pixels_BHWC)[:, None, None, None]


def solarize(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Pixels of 255 less the magnitude or more inverted."""
    return torch.where(pixels_BHWC >= _per_image(255 - magnitude_B, pixels_BHWC), 255 - pixels_BHWC, pixels_BHWC)


def auto_contrast(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Every channel stretched over 0 … 255."""
    from torchvision.transforms.v2.functional import autocontrast

    stretched_BCHW: Tensor = autocontrast(pixels_BHWC.permute(0, 3, 1, 2))
    return stretched_BCHW.permute(0, 2, 3, 1)


def equalize(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Grey levels of every channel made equally frequent."""
    from torchvision.transforms.v2.functional import equalize

    level_BCHW: Tensor = equalize(pixels_BHWC.permute(0, 3, 1, 2))
    return level_BCHW.permute(0, 2, 3, 1)


def enhance(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A change by a factor as one by its difference from 1."""
    return lambda pixels_BHWC, magnitude_B: change(pixels_BHWC, 1 + magnitude_B)


Row = tuple[Tensor | float, Tensor | float, Tensor | float]


def _moved(pixels_BHWC: Tensor, to_x: Row, to_y: Row) -> Tensor:
    """Pixel (x, y), counted from the centre, is the one nearest to (`to_x`, `to_y`) · (x, y, 1), or 0 outside."""
    count, height, width, _ = pixels_BHWC.shape
    matrix_6B = torch.stack([torch.as_tensor(entry).float().expand(count) for entry in (*to_x, *to_y)])
    xx, xy, x0, yx, yy, y0 = _sent(matrix_6B, pixels_BHWC)[:, :, None, None]
    y_H1 = torch.arange(height, device=pixels_BHWC.device)[:, None] - (height - 1) / 2
    x_W = torch.arange(width, device=pixels_BHWC.device) - (width - 1) / 2
    row_BHW = (yx * x_W + yy * y_H1 + y0 + (height - 1) / 2).round().long()
    column_BHW = (xx * x_W + xy * y_H1 + x0 + (width - 1) / 2).round().long()
    inside_BHW = (row_BHW >= 0) & (row_BHW < height) & (column_BHW >= 0) & (column_BHW < width)
    image_B11 = torch.arange(count, device=pixels_BHWC.device)[:, None, None]
    found_BHWC = pixels_BHWC[image_B11, row_BHW.clamp(0, height - 1), column_BHW.clamp(0, width - 1)]
    return found_BHWC * inside_BHW[..., None]


OPS = (
    Op("Identity", identity),
    Op("ShearX", shear_x, 0.3, 0.99, signed=True),
    Op("ShearY", shear_y, 0.3, 0.99, signed=True),
    Op("TranslateX", translate_x, 150 / 331, 32, signed=True),
    Op("TranslateY", translate_y, 150 / 331, 32, signed=True),
    Op("Rotate", rotate, 30, 135, signed=True),
    Op("Brightness", enhance(brightness), 0.9, 0.99, signed=True),
    Op("Color", enhance(saturation), 0.9, 0.99, signed=True),
    Op("Contrast", enhance(contrast), 0.9, 0.99, signed=True),
    Op("Sharpness", enhance(sharpness), 0.9, 0.99, signed=True),
    Op("Posterize", posterize, 4, 6),
    Op("Solarize", solarize, 255, 255),
    Op("AutoContrast", auto_contrast),
    Op("Equalize", equalize),
)
"""What policies choose from: torchvision's RandAugment and TrivialAugmentWide."""


def _draw_policy(count: int, config: RandAugment | TrivialAugment, generator: torch.Generator) -> Tensor:
    """Operations and strengths (B, O, 2); see `Draws.policy_BO2`."""
    shape = (count, config.ops if isinstance(config, RandAugment) else 1)
    op_BO = torch.randint(0, len(OPS), shape, generator=generator)
    sign_BO = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    if isinstance(config, RandAugment):
        return torch.stack([op_BO, sign_BO * config.magnitude], 2)
    return torch.stack([op_BO, sign_BO * torch.randint(0, BINS + 1, shape, generator=generator)], 2)


def apply_policy(pixels_BHWC: Tensor, policy_BO2: Tensor, config: RandAugment | TrivialAugment) -> Tensor:
    """Raw pixels after their operations, one after the other; see `Draws.policy_BO2`. Images of one operation at once.

    Raises:
        DataError: the images have neither 1 nor 3 channels.
    """
    _expect_colours("policy", pixels_BHWC)
    result = pixels_BHWC.clone()
    for op_B, strength_B in policy_BO2.permute(1, 2, 0):
        for place in op_B.unique().tolist():
            magnitude_B = strength_B.double() / BINS * _reach(OPS[place], config, pixels_BHWC.shape)
            rows = torch.nonzero(op_B == place)[:, 0]
            _change(result, rows, OPS[place].apply, magnitude_B if OPS[place].signed else magnitude_B.abs())
    return result


def _reach(op: Op, config: RandAugment | TrivialAugment, shape: torch.Size) -> float:
    """The largest magnitude for images of that shape (B, H, W, C)."""
    if isinstance(config, TrivialAugment):
        return op.trivial
    return op.rand * {"TranslateX": shape[2], "TranslateY": shape[1]}.get(op.name, 1)
