"""Policies of whole batches, on the device: RandAugment and TrivialAugment, with torchvision's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from otkd.core.augment import RandAugment, TrivialAugment
from otkd.data.colours import brightness, change_some, contrast, expect_colours, per_image, saturation, sharpness
from otkd.data.crops import sent

BINS = 30
"""Strength of the strongest operation of a policy; 0 is the weakest."""


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
    return pixels_BHWC & sent(mask_B, pixels_BHWC)[:, None, None, None]


def solarize(pixels_BHWC: Tensor, magnitude_B: Tensor) -> Tensor:
    """Pixels of 255 less the magnitude or more inverted."""
    return torch.where(pixels_BHWC >= per_image(255 - magnitude_B, pixels_BHWC), 255 - pixels_BHWC, pixels_BHWC)


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
    xx, xy, x0, yx, yy, y0 = sent(matrix_6B, pixels_BHWC)[:, :, None, None]
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


def draw_policy(count: int, config: RandAugment | TrivialAugment, generator: torch.Generator) -> Tensor:
    """Operations and strengths (B, O, 2); see `otkd.data.augment.Draws`."""
    shape = (count, config.ops if isinstance(config, RandAugment) else 1)
    op_BO = torch.randint(0, len(OPS), shape, generator=generator)
    sign_BO = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    if isinstance(config, RandAugment):
        return torch.stack([op_BO, sign_BO * config.magnitude], 2)
    return torch.stack([op_BO, sign_BO * torch.randint(0, BINS + 1, shape, generator=generator)], 2)


def apply_policy(pixels_BHWC: Tensor, policy_BO2: Tensor, config: RandAugment | TrivialAugment) -> Tensor:
    """Raw pixels after their operations, one after the other; images of one operation at once.

    Args:
        pixels_BHWC: on any device.
        policy_BO2: on the CPU, see `otkd.data.augment.Draws`.
        config: which policy; decides on how strong an operation can be.

    Raises:
        DataError: the images have neither 1 nor 3 channels.
    """
    expect_colours("policy", pixels_BHWC)
    result = pixels_BHWC.clone()
    for op_B, strength_B in policy_BO2.permute(1, 2, 0):
        for place in op_B.unique().tolist():
            magnitude_B = strength_B.double() / BINS * _reach(OPS[place], config, pixels_BHWC.shape)
            rows = torch.nonzero(op_B == place)[:, 0]
            change_some(result, rows, OPS[place].apply, magnitude_B if OPS[place].signed else magnitude_B.abs())
    return result


def _reach(op: Op, config: RandAugment | TrivialAugment, shape: torch.Size) -> float:
    """The largest magnitude for images of that shape (B, H, W, C)."""
    if isinstance(config, TrivialAugment):
        return op.trivial
    return op.rand * {"TranslateX": shape[2], "TranslateY": shape[1]}.get(op.name, 1)
