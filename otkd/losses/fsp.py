"""FSP: the flow of the solution procedure (Yim, Joo, Bae & Kim, CVPR 2017).

Between consecutive maps of one network, the stem included, G_ij = mean over space of a_i b_j tells how channel j of the
later arises from channel i of the earlier; the spatially larger of the two is average-pooled to the other. The loss is
Σ mean (G_s − G_t)² over the pairs, the mean over batch and channels, as in RepDistiller. The student is trained to it
first, in a stage of its own, and without it afterwards.

The paper and torchdistill pool by the maximum; torchdistill adds up columns' norms where the paper squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import StrictModel, TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import same_channels, same_stages
from otkd.losses.base import LossOutput, Probe, Stage, TermLoss
from otkd.losses.maps import same_size, teacher_of
from otkd.ot.precision import full_precision, widen


class FlowStage(StrictModel):
    """The stage before the main one in which this term is trained."""

    epochs: PositiveInt = 30
    """Epochs of the stage."""
    lr: PositiveFloat = 0.05
    """Its constant learning rate."""


class Config(TermConfig):
    """Flow between consecutive maps, before the main stage."""

    weight: NonNegativeFloat = 1.0
    """Without effect: in its own stage the term stands alone. The published 50 is never applied either."""
    stages: FlowStage = FlowStage()
    """The stage in which the student is trained to this term alone; it takes no part in the main stage."""

    @property
    def in_training(self) -> bool:
        """Never: its stage is the whole of it."""
        return False

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the networks have unequal numbers of maps or of channels."""
        yield from super().check(student, teacher)
        yield from list(same_stages(student, teacher)) or same_channels(student, teacher)


class Loss(TermLoss):
    """Squared difference of the flow matrices (B, C, D), summed over consecutive maps."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        channels_s, channels_t = (
            [f.shape[1] for f in out.features] for out in (probe.student, teacher_of("fsp", probe))
        )
        if channels_s != channels_t:
            raise OtkdError(
                f"fsp compares channels one by one; the student's maps have {channels_s}, the teacher's {channels_t}"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("fsp", self.config.stages.epochs, self.config.stages.lr),)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            flows_s = _flows(out_s.features)
            flows_t = _flows(tuple(map_t.detach() for map_t in out_t.features))
            values = [F.mse_loss(flow_s, flow_t) for flow_s, flow_t in zip(flows_s, flows_t, strict=True)]
            return LossOutput(torch.stack(values).sum())


def _flows(features: tuple[Tensor, ...]) -> list[Tensor]:
    return [_flow(*same_size(widen(earlier), widen(later))) for earlier, later in pairwise(features)]


def _flow(earlier_BCHW: Tensor, later_BDHW: Tensor) -> Tensor:
    a_BCP, b_BDP = earlier_BCHW.flatten(2), later_BDHW.flatten(2)
    return a_BCP @ b_BDP.mT / a_BCP.shape[2]
