"""FT: factor transfer (Kim, Park & Kwak, NeurIPS 2018).

A paraphraser, three convolutions (the encoder) and three transposed ones (the decoder), learns in a stage of its own
to reconstruct the teacher's last map through fewer channels, mean (t − decoder(encoder(t)))². In the main stage it
stays as it is, and a translator, three convolutions with batch norm on the student's last map, is trained with the
student to give the same factors: mean |F(translator(s)) − F(encoder(t))|. Convolutions are 3 × 3, each with a leaky
ReLU of 0.1. The spatially larger factor map is average-pooled to the smaller.

RepDistiller's F collapses channels as attention does, the mean over channels of x² flattened and divided by its L2 norm
(default); the paper's and torchdistill's divides the whole flattened x by its norm (`collapse: false`; torchdistill's
weight is then 1000, and its translator has no batch norm). The two are different losses. RepDistiller's first stage has
a learning rate of 0.01 for the students that it scripts, but for VGG and ResNet50, where it is 0.05.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.config import StrictModel, TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, Stage, TermLoss
from otkd.losses.maps import BatchNorm2d, same_size, teacher_of
from otkd.ot.precision import widen


class ParaphraserStage(StrictModel):
    """The stage before the main one in which the paraphraser alone is trained."""

    epochs: PositiveInt = 30
    """Epochs of the stage."""
    lr: PositiveFloat = 0.01
    """Its constant learning rate."""


class Config(TermConfig):
    """Factors of the last map."""

    weight: NonNegativeFloat = 200.0
    """Factor of this term in the weighted sum of the main stage."""
    rate: PositiveFloat = 0.5
    """Channels of the factors, as a share of the teacher's."""
    collapse: bool = True
    """Compare factors whose channels are collapsed into one map; off, compare them channel by channel."""
    stages: ParaphraserStage = ParaphraserStage()
    """The stage in which the paraphraser learns to reconstruct the teacher's last map; the student waits."""


class Loss(TermLoss):
    """Mean difference of the normalised factors of both networks' last maps."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        channels_s, channels_t = (out.stages[-1].shape[1] for out in (probe.student, teacher_of("factor", probe)))
        factors = max(1, int(channels_t * config.rate))
        self.encoder = _layers(nn.Conv2d, (channels_t, channels_t, factors, factors), norm=False)
        self.decoder = _layers(nn.ConvTranspose2d, (factors, factors, channels_t, channels_t), norm=False)
        self.translator = _layers(nn.Conv2d, (channels_s, channels_s, factors, factors), norm=True)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("paraphraser", self.config.stages.epochs, self.config.stages.lr, student=False),)

    def pretrain(self, out_s: ModelOutput | None, out_t: ModelOutput, batch: Batch) -> LossOutput:
        """The reconstruction's error."""
        map_t_BCHW = out_t.stages[-1].detach()
        return LossOutput(F.mse_loss(widen(self.decoder(self.encoder(map_t_BCHW))), widen(map_t_BCHW)))

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with torch.no_grad():
            factors_t_BFHW = self.encoder(out_t.stages[-1])
        factors_s_BFHW = self.translator(out_s.stages[-1])
        factors_s, factors_t = same_size(widen(factors_s_BFHW), widen(factors_t_BFHW))
        return LossOutput(F.l1_loss(self._normalised(factors_s), self._normalised(factors_t)))

    def _normalised(self, factors_BFHW: Tensor) -> Tensor:
        compared = factors_BFHW.square().mean(1) if self.config.collapse else factors_BFHW
        return F.normalize(compared.flatten(1), dim=-1)


def _layers(
    convolution: type[nn.Conv2d] | type[nn.ConvTranspose2d], channels: tuple[int, ...], norm: bool
) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [convolution(before, after, 3, padding=1), *([BatchNorm2d(after)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)
