"""What every network returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from otkd.core.cards import Layer

if TYPE_CHECKING:
    from torch import Tensor


class ModelOutput(NamedTuple):
    """The outputs of a network that losses may look at.

    Shapes: `logits` (B, K); `embedding` (B, D), pooled, right before the classifier; `features` a tuple of
    (B, C, H, W), stem first, then one per stage; `preacts` the stages' twins before their last ReLU, without the stem,
    so that `preacts[i]` belongs to `features[i + 1]`; none where a network does not show them.
    """

    logits: Tensor
    embedding: Tensor
    features: tuple[Tensor, ...]
    preacts: tuple[Tensor, ...]
    taps: tuple[str, ...]
    """Names of `features`."""

    def layer(self, layer: Layer) -> Tensor:
        """The tensor at a tap: an index into `features`, a tap's name, `embedding` or `logits`.

        Raises:
            KeyError: this network has no such layer.
        """
        if layer == "embedding":
            return self.embedding
        if layer == "logits":
            return self.logits
        index = layer if isinstance(layer, int) else self.taps.index(layer) if layer in self.taps else -1
        if not 0 <= index < len(self.features):
            raise KeyError(f"no layer {layer!r}; there is {', '.join(self.taps)}, embedding, logits")
        return self.features[index]

    @property
    def stages(self) -> tuple[Tensor, ...]:
        """The feature maps without the stem."""
        return self.features[1:]


class Batch(NamedTuple):
    """One batch of images on the trial's device."""

    image: Tensor
    """(B, C, H, W), float, normalised, augmented."""
    target: Tensor
    """(B,), int64 class labels."""
    indices: Tensor
    """(B,), int64: places among the trial's training images (0, 1, …), for losses that remember images."""
