"""SP: similarity-preserving distillation (Tung & Mori, ICCV 2019).

F has a row per image, its last stage flattened; G = F Fᵀ with every row divided by its L2 norm, for each network by
itself. The loss is ‖G_t − G_s‖_F² / B², as in the article, RepDistiller and mdistiller, with their weight of 3000 (the
article also adds up several layers). torchdistill divides rows by their L1 norm, a slip in an argument's position.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from otkd.core.cards import Layer
from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.losses.relations import unit
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Which images of a batch excite both networks alike."""

    weight: NonNegativeFloat = 3000.0
    """Factor of this term in the weighted sum."""
    layer: Layer | None = None
    """What is compared: an index (0 is the stem), a tap's name, `embedding` or `logits`; by default each network's last
    stage."""


class Loss(TermLoss):
    """Mean squared difference between the two networks' row-normalised Gram matrices of the batch."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("similarity", probe)
        self.layer = config.layer

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            gap_BB = self._similarity(out_s) - self._similarity(out_t).detach()
            return LossOutput(gap_BB.square().mean())

    def _similarity(self, out: ModelOutput) -> Tensor:
        x = out.stages[-1] if self.layer is None else out.layer(self.layer)
        x_BP = widen(x).flatten(1)
        return unit(x_BP @ x_BP.mT)
