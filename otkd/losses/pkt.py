"""PKT: probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018).

S_ij = (cos(h_i, h_j) + 1) / 2 of the embeddings; each row, divided by its sum, is a distribution P_i over the batch.
The loss is the mean over all B² entries of P_t log((P_t + ε) / (P_s + ε)) with ε = 1e-7, as in RepDistiller, mdistiller
and torchdistill. A mean of KL divergences would divide by B. The article leaves out j = i, its code does not.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.losses.relations import unit
from otkd.ot.precision import full_precision, widen

EPSILON = 1e-7


class Config(TermConfig):
    """How likely the images of a batch are each other's neighbours."""

    weight: NonNegativeFloat = 30000.0
    """Factor of this term in the weighted sum."""


class Loss(TermLoss):
    """Divergence of the two networks' distributions over neighbours, from their embeddings (B, D)."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("pkt", probe)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            p_s_BB, p_t_BB = _neighbours(out_s.embedding), _neighbours(out_t.embedding.detach())
            ratio_BB = (p_t_BB + EPSILON) / (p_s_BB + EPSILON)
            return LossOutput((p_t_BB * ratio_BB.log()).mean())


def _neighbours(x_BD: Tensor) -> Tensor:
    """Probabilities (B, B), rows of sum 1. Rounding can take the cosine of opposite vectors below −1."""
    x_BD = unit(widen(x_BD))
    similarity_BB = ((x_BD @ x_BD.mT + 1) / 2).clamp_min(0)
    return similarity_BB / similarity_BB.sum(-1, keepdim=True)
