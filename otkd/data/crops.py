"""Crops of whole batches, on the device: random parts scaled to size, shifts within a border, mirroring."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from otkd.core.augment import ResizedCrop

ATTEMPTS = 10
"""How often a resized crop is drawn before the middle of the image is taken."""


def boxes(crop_BR: Tensor, config: ResizedCrop, height: int, width: int) -> Tensor:
    """Top, left, height and width (B, 4), int64, of the part that each image's draws take of an image of that size.

    Distributed as torchvision's RandomResizedCrop: of ten tries the first that fits, at any place; else the middle.

    Args:
        crop_BR: uniform numbers: ten pairs for area and shape, two for the corner.
    """
    uniform_BR = crop_BR.double()
    area_BA = height * width * between(config.scale, uniform_BR[:, 0:-2:2])
    ratio_BA = between((math.log(config.ratio[0]), math.log(config.ratio[1])), uniform_BR[:, 1:-2:2]).exp()
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


def between(span: tuple[float, float], uniform: Tensor) -> Tensor:
    """Uniform numbers from [0, 1) as uniform numbers from a span."""
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
    if not len(images_BHWC):  # no line to begin at
        return images_BHWC
    shifted_BHWC = _shifted(images_BHWC, offset_B2, pad) if pad else images_BHWC
    if not flip_B.any():
        return shifted_BHWC
    rows = torch.nonzero(flip_B)[:, 0]
    mirrored = shifted_BHWC.index_select(0, sent(rows, shifted_BHWC)).flip(2)
    place_B = torch.where(flip_B, len(flip_B) - 1 + flip_B.cumsum(0), torch.arange(len(flip_B)))
    return torch.cat([shifted_BHWC, mirrored]).index_select(0, sent(place_B, mirrored))


def _shifted(images_BHWC: Tensor, offset_B2: Tensor, pad: int) -> Tensor:
    """Every line of W pixels of the padded images, wherever it begins, is a row of a matrix; crops are rows of it."""
    batch, height, width, channels = images_BHWC.shape
    padded = F.pad(images_BHWC, (0, 0, pad, pad, pad, pad)).contiguous()
    tall, wide = padded.shape[1:3]
    lines_LX = padded.as_strided((batch * tall * wide - width + 1, width * channels), (channels, 1))
    row_BH = torch.arange(height) + offset_B2[:, :1] + tall * torch.arange(batch)[:, None]
    first_BH = row_BH * wide + offset_B2[:, 1:]
    return lines_LX.index_select(0, sent(first_BH.view(-1), padded)).view_as(images_BHWC)


def sent(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor from the CPU on another's device, which nothing waits for."""
    return tensor.to(like.device, non_blocking=True)
