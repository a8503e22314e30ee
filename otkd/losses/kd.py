"""Knowledge distillation (Hinton, Vinyals & Dean, 2015, Sec. 2): match the teacher's softened predictions.

T² KL(softmax(z_t / T) ‖ softmax(z_s / T)), sum over classes, mean over the batch, as RepDistiller and mdistiller have
it. Disagreements: torchdistill drops T² when its cross-entropy weight is 0 (`scaled=False`); KD2M's student takes the
teacher's place, KL(student ‖ teacher), which is another loss and not offered here; WKD adds a penalty on the
classifier's weights. The ImageNet recipes of all take T = 1.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.precision import widen


class Config(TermConfig):
    """Hinton's distillation of softened logits."""

    temperature: PositiveFloat = 4.0
    """T, by which both networks' logits are divided."""
    scaled: bool = True
    """Multiply by T², so that the gradient's size does not depend on T."""


class Loss(TermLoss):
    """KL divergence from the teacher's to the student's softened predictions, mean over the batch."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.temperature = config.temperature
        self.factor = config.temperature**2 if config.scaled else 1.0

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        log_s_BK = F.log_softmax(widen(out_s.logits) / self.temperature, -1)
        log_t_BK = F.log_softmax(widen(out_t.logits.detach()) / self.temperature, -1)
        return LossOutput(self.factor * F.kl_div(log_s_BK, log_t_BK, reduction="batchmean", log_target=True))
