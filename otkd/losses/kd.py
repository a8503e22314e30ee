"""Knowledge distillation (Hinton, Vinyals & Dean, 2015, Sec. 2): match the teacher's softened predictions.

T² KL(softmax(z_t / T) ‖ softmax(z_s / T)), sum over classes, mean over the batch, as RepDistiller and mdistiller have
it. Disagreements: torchdistill drops T² when its cross-entropy weight is 0 (`scaled=False`); KD2M's student takes the
teacher's place, KL(student ‖ teacher), which is another loss and not offered here; WKD adds a penalty on the
classifier's weights. The ImageNet recipes of all take T = 1.

`standardize` is logit standardisation (Sun et al., CVPR 2024): before the temperature, each image's logits minus their
mean, divided by their standard deviation over classes, of both networks. The deviation is the unbiased one (K − 1) with
1e-7 added, as in the authors' code and torchdistill's, whose recipe takes T = 2 with weight 9.
"""

from __future__ import annotations

from pydantic import PositiveFloat
from torch import Tensor
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
    standardize: bool = False
    """Bring each image's logits to mean 0 and standard deviation 1 first, in both networks."""


class Loss(TermLoss):
    """KL divergence from the teacher's to the student's softened predictions, mean over the batch."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.temperature, self.standardize = config.temperature, config.standardize
        self.factor = config.temperature**2 if config.scaled else 1.0

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        log_s_BK, log_t_BK = self._softened(out_s.logits), self._softened(out_t.logits.detach())
        return LossOutput(self.factor * F.kl_div(log_s_BK, log_t_BK, reduction="batchmean", log_target=True))

    def _softened(self, logits_BK: Tensor) -> Tensor:
        """Logarithms of the softened predictions."""
        z_BK = standardized(widen(logits_BK)) if self.standardize else widen(logits_BK)
        return F.log_softmax(z_BK / self.temperature, -1)


def standardized(logits_BK: Tensor) -> Tensor:
    """Each image's logits less their mean, over their standard deviation."""
    centred_BK = logits_BK - logits_BK.mean(-1, keepdim=True)
    return centred_BK / (logits_BK.std(-1, keepdim=True) + 1e-7)
