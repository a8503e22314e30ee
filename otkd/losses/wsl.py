"""WSLD: weighted soft labels (Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
Perspective", ICLR 2021).

T² · mean_b w_b · H(softmax(z_t / T), softmax(z_s / T)), H the cross-entropy, with the image's weight, at T = 1 and
without gradient, w_b = 1 − exp(−CE(z_s, y) / CE(z_t, y)): what the student already knows better than the teacher counts
less. As in the authors' release, 1e-7 is added to the teacher's cross-entropy; T = 2 and the weight of 2.5 are theirs.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.ot.precision import widen


class Config(TermConfig):
    """Softened predictions, weighted by image."""

    weight: NonNegativeFloat = 2.5
    """Factor of this term in the weighted sum."""
    temperature: PositiveFloat = 2.0
    """T, by which both networks' logits are divided."""

    @property
    def one_label(self) -> bool:
        """An image's weight is of its label's probability."""
        return True


class Loss(TermLoss):
    """Weighted mean cross-entropy between both networks' softened predictions."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("wsl", probe)
        self.temperature = config.temperature

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        s_BK, t_BK = widen(out_s.logits), widen(out_t.logits.detach())
        soft_B = F.cross_entropy(s_BK / self.temperature, (t_BK / self.temperature).softmax(-1), reduction="none")
        weight_B = _weights(s_BK.detach(), t_BK, batch.target)
        value = self.temperature**2 * (weight_B * soft_B).mean()
        return LossOutput(value, parts={"image_weight": weight_B.mean()})


def _weights(s_BK: Tensor, t_BK: Tensor, target_B: Tensor) -> Tensor:
    """Of each image, in [0, 1)."""
    error_s_B, error_t_B = (F.cross_entropy(z_BK, target_B, reduction="none") for z_BK in (s_BK, t_BK))
    return -torch.expm1(-error_s_B / (error_t_B + 1e-7))
