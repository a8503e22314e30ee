"""Images to augment, and how far two of them are apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int = 11, channels: int = 3, height: int = 13, width: int = 17) -> Tensor:
    """Smooth images with some noise, so that blurring and stretching mean something."""
    made = torch.rand(count, channels, 4, 5, generator=generator(1))
    smooth = torch.nn.functional.interpolate(made, (height, width), mode="bilinear")
    noise = 0.1 * torch.rand(smooth.shape, generator=generator(2))
    return (255 * (smooth + noise).clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def one(pixels_HWC: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(pixels_HWC.permute(2, 0, 1)).permute(1, 2, 0)


def difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())
