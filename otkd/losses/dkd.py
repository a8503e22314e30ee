"""DKD: decoupled knowledge distillation (Zhao, Cui, Song, Qiu & Liang, CVPR 2022).

T² · [α · KL(b_t ‖ b_s) + β · KL(p̂_t ‖ p̂_s)], mean over the batch: b = (p_y, 1 − p_y) holds the softened probability of
the true class and of all others, p̂ is the softmax over the others alone. Hinton's divergence is the same with α = 1 and
β = 1 − p_y of the teacher, so β sets the others free from the teacher's confidence.

mdistiller takes logarithms of probabilities, which are infinite for a saturated student; here all is computed from
logarithms. Its warm-up over 20 epochs is the default `schedule`. It takes β = 8, on CIFAR-100 also 6 and 2 by pair, on
ImageNet 0.5 or 2 with T = 1. `standardize` is that of `kd`.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from otkd.core.config import TermConfig, Warmup, WeightSchedule
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.kd import standardized
from otkd.losses.maps import teacher_of
from otkd.ot.precision import widen


class Config(TermConfig):
    """Softened predictions, the true class and the others apart."""

    schedule: WeightSchedule = Warmup(name="warmup", epochs=20)
    """How the weight changes from epoch to epoch of the main stage: `{name: warmup, epochs}` or `{name: cosine, start,
    end}`; null keeps it constant."""
    alpha: NonNegativeFloat = 1.0
    """Factor of the divergence between the true class and all others together."""
    beta: NonNegativeFloat = 8.0
    """Factor of the divergence among the others."""
    temperature: PositiveFloat = 4.0
    """T, by which both networks' logits are divided."""
    standardize: bool = False
    """Bring each image's logits to mean 0 and standard deviation 1 first, in both networks."""

    @property
    def one_label(self) -> bool:
        """The true class is told apart from the others."""
        return True


class Loss(TermLoss):
    """Both divergences from the teacher's to the student's softened predictions, mean over the batch."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("dkd", probe)
        self.config = config

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        config = self.config
        both_s_B2, rest_s_BK = self._decoupled(out_s.logits, batch.target)
        both_t_B2, rest_t_BK = self._decoupled(out_t.logits.detach(), batch.target)
        target, others = _divergence(both_t_B2, both_s_B2), _divergence(rest_t_BK, rest_s_BK)
        value = config.temperature**2 * (config.alpha * target + config.beta * others)
        return LossOutput(value, parts={"target": target.detach(), "others": others.detach()})

    def _decoupled(self, logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """log b (B, 2), and log p̂ (B, K) with 0 in the true class's place."""
        z_BK = standardized(widen(logits_BK)) if self.config.standardize else widen(logits_BK)
        true_BK = F.one_hot(target_B, z_BK.shape[1]).bool()
        log_BK = F.log_softmax(z_BK / self.config.temperature, -1)
        others_B1 = log_BK.masked_fill(true_BK, -torch.inf).logsumexp(-1, keepdim=True)
        both_B2 = torch.cat([log_BK.gather(1, target_B[:, None]), others_B1], 1)
        return both_B2, (log_BK - others_B1).masked_fill(true_BK, 0)


def _divergence(log_t_BK: Tensor, log_s_BK: Tensor) -> Tensor:
    """KL(t ‖ s), mean over the batch; entries that are 0 in both add nothing."""
    return F.kl_div(log_s_BK, log_t_BK, reduction="batchmean", log_target=True)
