"""What data sets of large photographs share: to which size they are scaled, and how ImageNet's pixels are spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt, model_validator

from otkd.core.datasets import DataOptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per channel, of pixels in 0..1; the values that torchvision's weights were trained with."""
IMAGENET_STD = (0.229, 0.224, 0.225)


class Scaled(DataOptions):
    """Options of images that are scaled as they are read."""

    side: PositiveInt = 224
    """Height and width in pixels as networks see them."""
    resize: PositiveInt = 256
    """Shorter side in pixels before the central crop of evaluation; by default 8/7 of `side`."""

    @model_validator(mode="before")
    @classmethod
    def _resize_follows_side(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "resize" in given:
            return given
        side = given.get("side")
        return {**given, "resize": round(side * 8 / 7)} if isinstance(side, int) and side > 0 else given

    @model_validator(mode="after")
    def _crop_within_the_image(self) -> Scaled:
        if self.resize < self.side:
            raise ValueError(f"resize: a central crop of side {self.side} takes at least as much. Got {self.resize}.")
        return self
