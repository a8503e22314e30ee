"""How training images are changed at random, as a sweep file says it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from otkd.core.config import StrictModel

Span = Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]


class ResizedCrop(StrictModel):
    """A part of the image of random area and shape, scaled to the size that the network takes (Szegedy et al. 2015)."""

    scale: Span = (0.08, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: Span = (3 / 4, 4 / 3)
    """Smallest and largest width divided by height."""

    @model_validator(mode="after")
    def _ordered(self) -> ResizedCrop:
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if least > most:
                raise ValueError(f"{name}: the smallest comes first. Got {least}, {most}.")
        if self.scale[1] > 1:
            raise ValueError(f"scale: a share of the area is at most 1. Got {self.scale[1]}.")
        return self


class Jitter(StrictModel):
    """Brightness, contrast and saturation by factors from [max(0, 1 - x), 1 + x], hue by shifts from [-x, x]."""

    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[NonNegativeFloat, Field(le=0.5)] = 0.0


class RandAugment(StrictModel):
    """Some operations at one strength (Cubuk et al. 2020)."""

    name: Literal["rand_augment"]
    ops: PositiveInt = 2
    """Operations an image, one after the other."""
    magnitude: Annotated[NonNegativeInt, Field(le=30)] = 9
    """Strength, from 0 to 30."""


class TrivialAugment(StrictModel):
    """One operation at a random strength (Müller & Hutter 2021), from the wide ranges."""

    name: Literal["trivial_augment"]


class Augment(StrictModel):
    """Augmentation of training batches, in this order; none of it touches validation and test images."""

    pad: NonNegativeInt = 0
    """Zero pixels added on every side before a random crop back to size."""
    resized_crop: ResizedCrop | None = None
    """Take a random part of the image and scale it to size: `{scale, ratio}`."""
    flip: bool = False
    """Mirror half of the images left-right."""
    policy: Annotated[RandAugment | TrivialAugment, Field(discriminator="name")] | None = None
    """`{name: rand_augment, ops, magnitude}` or `{name: trivial_augment}`."""
    jitter: Jitter | None = None
    """`{brightness, contrast, saturation, hue}`, in random order."""
    cutout: NonNegativeInt = 0
    """Side of a square at a random place that is set to the mean (DeVries & Taylor 2017); 0 for none."""
    mixup: NonNegativeFloat = 0.0
    """α of Beta(α, α), by which two images of a batch are mixed (Zhang et al. 2018); 0 for none."""
    cutmix: NonNegativeFloat = 0.0
    """α of Beta(α, α), the share of an image that keeps its place (Yun et al. 2019); 0 for none. With `mixup`, too,
    each batch undergoes one of both."""
    views: PositiveInt = 1
    """Copies of each image in a batch, each augmented by itself (Hoffer et al. 2020)."""

    @model_validator(mode="after")
    def _one_crop(self) -> Augment:
        if self.pad and self.resized_crop:
            raise ValueError("pad and resized_crop are two ways to crop; leave one of both out (pad: 0, or null).")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images have shares of two labels."""
        return self.mixup > 0 or self.cutmix > 0
