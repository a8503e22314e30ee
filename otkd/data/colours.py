"""Changes of colour of whole batches, on the device: what each is in torchvision, by a factor for each image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otkd.core.augment import Jitter
from otkd.core.errors import DataError
from otkd.data.crops import between, sent


def apply_jitter(pixels_BHWC: Tensor, jitter_B8: Tensor, config: Jitter) -> Tensor:
    """Raw pixels with changed colours, in each image's own order (torchvision's ColorJitter).

    Args:
        pixels_BHWC: on any device.
        jitter_B8: on the CPU, see `otkd.data.augment.Draws`.
        config: the spans of the factors; a step of 0 is left out.

    Raises:
        DataError: the images have neither 1 nor 3 channels.
    """
    expect_colours("jitter", pixels_BHWC)
    result = pixels_BHWC.clone()
    for next_B in jitter_B8[:, :4].argsort(dim=1, stable=True).T:
        for step, (name, change) in enumerate(STEPS.items()):
            if getattr(config, name):
                value_B = between(_span(config, name), jitter_B8[:, 4 + step])
                change_some(result, torch.nonzero(next_B == step)[:, 0], change, value_B)
    return result


def _span(config: Jitter, name: str) -> tuple[float, float]:
    strength: float = getattr(config, name)
    return (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)


def change_some(
    pixels_BHWC: Tensor, rows: Tensor, change: Callable[[Tensor, Tensor], Tensor], values_B: Tensor
) -> None:
    """Change some of the images, in place, each by its value."""
    if len(rows):
        there = sent(rows, pixels_BHWC)
        pixels_BHWC[there] = change(pixels_BHWC[there], values_B[rows])


def expect_colours(what: str, pixels_BHWC: Tensor) -> None:
    """Raises `DataError` where images have neither 1 nor 3 channels."""
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
    """Raw pixels away from their grey by a factor; grey images stay as they are."""
    if pixels_BHWC.shape[3] == 1:
        return pixels_BHWC
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
    sixth = _sixths(pixels_BHWC) + 6 * per_image(shift_B, pixels_BHWC)
    turned = (sixth + sent(torch.tensor([5.0, 3.0, 1.0]), sixth)) % 6
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
    factor = per_image(factor_B, pixels_BHWC)
    return (pixels_BHWC * factor + other * (1 - factor)).clamp(0, 255).to(torch.uint8)


def _grey(pixels_BHWC: Tensor) -> Tensor:
    if pixels_BHWC.shape[3] == 1:
        return pixels_BHWC.float()
    red, green, blue = pixels_BHWC.float().split(1, dim=3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def per_image(value_B: Tensor, pixels_BHWC: Tensor) -> Tensor:
    """Values on the CPU as factors (B, 1, 1, 1) of raw pixels."""
    return sent(value_B.float(), pixels_BHWC)[:, None, None, None]


STEPS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
"""What a colour jitter consists of; from raw pixels (B, H, W, C) and factors (B,) on the CPU."""
