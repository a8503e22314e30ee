"""AB: activation boundaries (Heo, Lee, Yun & Choi, AAAI 2019).

The student learns on which side of its last ReLU each neuron of each stage lies in the teacher. With s the student's
map before that ReLU, t the teacher's and a margin m,
ℓ = Σ (s + m)² [s > −m, t ≤ 0] + (s − m)² [s ≤ m, t > 0] over channels and space,
L = 3/1000 Σ_l 2^(l−n) mean_b ℓ_l over the stages l = 1 … n, as in the authors' release and RepDistiller. The student is
trained to it first, in a stage of its own, and without it afterwards.

Where the channels differ a connector, 1 × 1 convolution and batch norm, brings the student's map to the teacher's. The
spatially larger map is average-pooled first; RepDistiller's connectors halve or double the student's instead.
torchdistill weighs all stages alike and drops 3/1000.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.config import StrictModel, TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import has_preacts, same_stages
from otkd.losses.base import LossOutput, Probe, Stage, TermLoss
from otkd.losses.maps import BatchNorm2d, paired_stages, same_size, teacher_of
from otkd.ot.precision import widen


class BoundaryStage(StrictModel):
    """The stage before the main one in which this term is trained."""

    epochs: PositiveInt = 30
    """Epochs of the stage."""
    lr: PositiveFloat = 0.05
    """Its constant learning rate."""


class Config(TermConfig):
    """On which side of the ReLU each neuron lies, before the main stage."""

    weight: NonNegativeFloat = 1.0
    """Without effect: in its own stage the term stands alone."""
    margin: PositiveFloat = 1.0
    """How far from its boundary a neuron of the student should lie."""
    stages: BoundaryStage = BoundaryStage()
    """The stage in which the student is trained to this term alone; it takes no part in the main stage."""

    @property
    def in_training(self) -> bool:
        """Never: its stage is the whole of it."""
        return False

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where stages cannot be paired or are not shown before their last ReLU."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)
        yield from has_preacts(student, teacher)


class Loss(TermLoss):
    """Squared distance to the right side of the boundary, weighted over the stages before their last ReLU."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        channels = [(map_s.shape[1], map_t.shape[1]) for map_s, map_t in paired_stages("ab", probe)]
        for who, out in (("student", probe.student), ("teacher", teacher_of("ab", probe))):
            if not out.preacts:
                raise OtkdError(
                    f"ab needs the stages before their last ReLU, which the {who} does not show; choose another network"
                )
        self.connectors = nn.ModuleList(_connector(*pair) for pair in channels)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("ab", self.config.stages.epochs, self.config.stages.lr),)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        value = widen(out_s.logits).new_zeros(())
        for connector, map_s, map_t in zip(self.connectors, out_s.preacts, out_t.preacts, strict=True):
            value = value / 2 + self._stage(connector, map_s, map_t.detach())
        return LossOutput(3 / 1000 * value)

    def _stage(self, connector: nn.Module, map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
        """ℓ, mean over the batch."""
        margin = self.config.margin
        pooled_s, t = same_size(widen(map_s_BCHW), widen(map_t_BDHW))
        s = widen(connector(pooled_s))
        gap = (
            torch.where(t > 0, (margin - s).clamp_min(0), (margin + s).clamp_min(0)) + 0 * t
        )  # not finite where t is not
        return gap.square().sum() / len(gap)


def _connector(channels_s: int, channels_t: int) -> nn.Module:
    if channels_s == channels_t:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_s, channels_t, 1), BatchNorm2d(channels_t))
