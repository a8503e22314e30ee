"""Facts about networks and data sets that planning needs before torch is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from otkd.core.errors import Problem, did_you_mean

if TYPE_CHECKING:
    from otkd.core.augment import Augment

Layer = int | str
"""A tap: its index (0 is the stem, 1 the first stage), its name, `embedding` or `logits`."""


@dataclass(frozen=True)
class ModelCard:
    """One network as planning sees it; a test holds every card against the network itself."""

    params: int
    """Parameters with 100 classes and 3 input channels."""
    taps: tuple[str, ...]
    """Names of the feature maps in order, stem first."""
    channels: tuple[int, ...]
    """Channels of each tap."""
    embedding: int
    """Width of the pooled vector before the classifier."""
    strides: tuple[int, ...] = ()
    """By how much each tap is smaller than the image, height and width alike."""
    preacts: bool = True
    """Whether it hands out its stages before their last ReLU."""
    norms: bool = True
    """Whether it names the batch norm before each stage's last ReLU."""
    pools_last: bool = True
    """Whether the embedding is the mean of the last stage after its ReLU, with nothing between."""
    madds: int = 0
    """Multiply-adds for one image of `side` pixels, with 100 classes."""
    side: int = 32
    """Height and width of the images that it is meant for."""
    sides: tuple[int, int | None] = (1, None)
    """The smallest and the largest side that it takes; None for no largest."""
    weights: tuple[str, ...] = ()
    """Names of the weights that come with it, all for the 1000 classes of ImageNet."""

    def layers(self) -> tuple[str, ...]:
        """Every name that a `layer:` setting may take for this network."""
        return (*self.taps, "embedding", "logits")

    def stride(self, tap: Layer) -> int:
        """By how much a tap is smaller than the image; 1 where the card does not say."""
        index = tap if isinstance(tap, int) else self.taps.index(tap)
        return self.strides[index] if self.strides else 1

    def check_layer(self, layer: Layer) -> Iterator[Problem]:
        """Yield a problem unless this network has `layer`."""
        known = layer < len(self.taps) and layer >= 0 if isinstance(layer, int) else layer in self.layers()
        if not known:
            taps = ", ".join(f"{i} ({name})" for i, name in enumerate(self.taps))
            yield Problem(
                "layer",
                f"there is no layer {layer!r} in this network; it has {taps}, embedding, logits."
                f"{did_you_mean(layer, self.layers())}",
            )


@dataclass(frozen=True)
class DataCard:
    """One data set as planning sees it."""

    classes: int
    channels: int
    side: int
    """Height and width in pixels, as networks see them."""
    train: int
    """Training images."""
    test: int
    """Test images."""
    mean: tuple[float, ...]
    """Per-channel mean of pixels scaled to 0..1, subtracted before training."""
    std: tuple[float, ...]
    """Per-channel standard deviation, divided by after the mean is subtracted."""
    augment: Augment
    """What training batches undergo unless the sweep says otherwise."""
    about: str
    """One line for `otkd list data`."""
    streamed: bool = False
    """Whether images are decoded when they are needed rather than held in memory."""
    names: tuple[str, ...] = ()
    """What the classes are called, by label; empty where they have numbers alone."""
    resize: int = 0
    """Of streamed images: the shorter side in pixels before the central crop of evaluation."""
