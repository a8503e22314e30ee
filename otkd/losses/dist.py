"""DIST: distillation from a stronger teacher (Huang, You, Wang, Qian & Xu, NeurIPS 2022), on the logits.

With P = softmax(z / T) (B, K) and Pearson's correlation ρ, the loss is
T² · [β · (1 − mean_b ρ(P_s[b, :], P_t[b, :])) + γ · (1 − mean_k ρ(P_s[:, k], P_t[:, k]))]:
over the classes of each image, and over the images of the batch for each class. torchdistill agrees, with β = γ = T = 1
and a weight of 2; each norm of a correlation is 1e-8 at least, where the authors add 1e-8 to the product of both, which
damps classes that are hardly ever predicted. What does not vary (a batch of one image, a class that no image has)
correlates with nothing: ρ = 0.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.losses.relations import unit
from otkd.ot.precision import widen


class Config(TermConfig):
    """Correlation of softened predictions, within images and within classes."""

    weight: NonNegativeFloat = 2.0
    """Factor of this term in the weighted sum."""
    beta: NonNegativeFloat = 1.0
    """Factor of the correlation over classes, image by image."""
    gamma: NonNegativeFloat = 1.0
    """Factor of the correlation over images, class by class."""
    temperature: PositiveFloat = 1.0
    """T, by which both networks' logits are divided."""


class Loss(TermLoss):
    """What both networks' softened predictions lack of full correlation."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("dist", probe)
        self.config = config

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        temperature = self.config.temperature
        p_s_BK, p_t_BK = ((widen(z) / temperature).softmax(-1) for z in (out_s.logits, out_t.logits.detach()))
        inter, intra = _lack(p_s_BK, p_t_BK), _lack(p_s_BK.mT, p_t_BK.mT)
        value = temperature**2 * (self.config.beta * inter + self.config.gamma * intra)
        return LossOutput(value, parts={"inter": inter.detach(), "intra": intra.detach()})


def _lack(x_NM: Tensor, y_NM: Tensor) -> Tensor:
    """1 less the mean correlation of the rows."""
    x_NM, y_NM = (unit(z - z.mean(-1, keepdim=True), 1e-8) for z in (x_NM, y_NM))
    return 1 - (x_NM * y_NM).sum(-1).mean()
