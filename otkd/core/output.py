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

    def rows(self, rows: slice | Tensor) -> ModelOutput:
        """The outputs for some of the images."""
        return ModelOutput(
            self.logits[rows],
            self.embedding[rows],
            tuple(map_BCHW[rows] for map_BCHW in self.features),
            tuple(map_BCHW[rows] for map_BCHW in self.preacts),
            self.taps,
        )

    @property
    def stages(self) -> tuple[Tensor, ...]:
        """The feature maps without the stem."""
        return self.features[1:]


class Mixed(NamedTuple):
    """The other label of images that were mixed of two."""

    target: Tensor
    """(B,), int64: the label of the image that was mixed in."""
    share: Tensor
    """Scalar: the share of an image's own label, the same for the whole batch."""


class Batch(NamedTuple):
    """One batch of images on the trial's device."""

    image: Tensor
    """(B, C, H, W), float, normalised, augmented."""
    target: Tensor
    """(B,), int64 class labels; of a mixed image the label of the one that lent its place."""
    indices: Tensor
    """(B,), int64: places among the trial's training images (0, 1, …), for losses that remember images."""
    mixed: Mixed | None = None
    """The labels that were mixed in, where images are mixed of two."""

    def rows(self, rows: slice | Tensor) -> Batch:
        """Some of the images."""
        mixed = self.mixed and self.mixed._replace(target=self.mixed.target[rows])
        return Batch(self.image[rows], self.target[rows], self.indices[rows], mixed)
