"""Cross-entropy with the true labels: the term that needs no teacher, and the floor of every comparison.

Mean over the batch. Code bases weigh it differently beside KD: RepDistiller and mdistiller 0.1 on CIFAR;
torchdistill's `alpha` is this term's weight (0.9 in its CIFAR recipe), not that of the distillation term. Of an image
that is mixed of two (mixup, CutMix) both labels count, by their shares.
"""

from __future__ import annotations

from typing import ClassVar

from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, TermLoss
from otkd.ot.precision import widen


class Config(TermConfig):
    """Cross-entropy with the labels."""


class Loss(TermLoss):
    """Cross-entropy of the student's logits (B, K), mean over the batch."""

    needs_teacher: ClassVar[bool] = False

    def forward(self, out_s: ModelOutput, out_t: ModelOutput | None, batch: Batch) -> LossOutput:
        logits_BK = widen(out_s.logits)
        value = F.cross_entropy(logits_BK, batch.target)
        if batch.mixed is None:
            return LossOutput(value)
        other, share = F.cross_entropy(logits_BK, batch.mixed.target), batch.mixed.share
        return LossOutput(share * value + (1 - share) * other)
