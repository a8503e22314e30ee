"""One image as it lies on disk, decoded; needs PIL alone."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
"""The encodings that are read, by PIL's names; PIL is asked for no other."""
MODES = {1: "L", 3: "RGB"}
"""Channels → PIL's mode."""
LONGEST = 1000
"""How many times longer than wide an image may be: a longer one, scaled to size, would fill the memory."""


def decode(encoded: bytes, channels: int) -> Image.Image:
    """An image in grey (1 channel) or colour (3), whatever its file has; not turned as EXIF may ask for.

    Raises:
        Exception: whatever PIL raises for what is no whole image; `reason` puts it into words.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels have more than 8 bits (mode {picture.mode}), of which half would be lost")
        if max(picture.size) > LONGEST * min(picture.size):
            raise ValueError(f"it is {picture.width} × {picture.height} pixels, too long to be scaled")
        return picture.convert(MODES[channels])


def reason(error: Exception) -> str:
    """Why an image cannot be read, in words."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return str(error) or repr(error)
