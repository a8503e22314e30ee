"""OFD: overhaul of feature distillation (Heo, Kim, Yun, Park, Kwak & Choi, ICCV 2019, Sec. 3).

At every stage the student's map before its last ReLU goes through a connector s = BN(1 × 1 conv) to the teacher's
channels and is compared with the teacher's map t before its ReLU. Below 0 the ReLU drops t, so there the student only
has to be low: with the margin m_c = E[x | x < 0] of x ~ N(β_c, γ_c²), shift and scale of the teacher's batch norm
before that ReLU (−3 |γ_c| where P(x < 0) ≤ 0.001), and t' = max(t, m), an element costs (s − t')², but nothing where
s ≤ t' ≤ 0. Summed over a map, mean over the batch, stage l of n weighted by 2^(l − n). The larger map is average-pooled
to the smaller.

Disagreements: the authors' release and mdistiller leave the teacher in train mode, so that it normalises by the batch
and its running statistics move; here the teacher stays in eval mode, as for every term. mdistiller does not line up
margins where the numbers of stages differ; such pairs are refused here. On ImageNet mdistiller takes the weight 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import has_norms, has_preacts, same_stages
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import BatchNorm2d, paired_stages, same_size
from otkd.ot.precision import widen


class Config(TermConfig):
    """Distance of the stages before their last ReLU, one-sided where the teacher's ReLU drops its value."""

    weight: NonNegativeFloat = 1e-3
    """Factor of this term in the weighted sum."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where stages cannot be paired, are not shown before their ReLU, or have no known batch norm."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)
        yield from has_preacts(student, teacher)
        yield from has_norms(teacher)


class Loss(TermLoss):
    """One-sided squared distance of the stages before their last ReLU, deeper stages weighing more."""

    margins_C: Tensor

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        _check(probe)
        widths = [(map_s.shape[1], map_t.shape[1]) for map_s, map_t in paired_stages("ofd", probe)]
        self.connectors = nn.ModuleList(_connector(*pair) for pair in widths)
        self._widths_t = [width_t for _, width_t in widths]
        margins_C = torch.cat([margins(scale_C, shift_C) for scale_C, shift_C in probe.norms_t])
        self.register_buffer("margins_C", margins_C, persistent=False)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        maps_s = [connector(map_s) for connector, map_s in zip(self.connectors, out_s.preacts, strict=True)]
        stages = zip(maps_s, out_t.preacts, self.margins_C.split(self._widths_t), strict=True)
        values = [_stage(map_s, map_t.detach(), margin_C) for map_s, map_t, margin_C in stages]
        return LossOutput(torch.stack([value / 2**i for i, value in enumerate(reversed(values))]).sum())


def _stage(map_s_BCHW: Tensor, map_t_BCHW: Tensor, margin_C: Tensor) -> Tensor:
    map_s, map_t = same_size(widen(map_s_BCHW), widen(map_t_BCHW))
    target = torch.maximum(map_t, margin_C[:, None, None])
    low_enough = (map_s <= target) & (target <= 0)
    return (map_s - target).masked_fill(low_enough, 0).square().sum() / len(map_s)


def margins(scale_C: Tensor, shift_C: Tensor) -> Tensor:
    """Mean of what is negative of N(shift, scale²), channel by channel; −3 |scale| where hardly anything is."""
    std_C = scale_C.detach().double().abs().clamp_min(1e-12)
    mean_C = shift_C.detach().double()
    density_C = (-(mean_C / std_C).square() / 2).exp() / math.sqrt(2 * math.pi)
    share_C = torch.special.ndtr(-mean_C / std_C)
    margin_C = torch.where(share_C > 0.001, mean_C - std_C * density_C / share_C.clamp_min(0.001), -3 * std_C)
    return margin_C.to(scale_C.dtype)


def _connector(width_s: int, width_t: int) -> nn.Module:
    convolution = nn.Conv2d(width_s, width_t, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as the authors' release
    return nn.Sequential(convolution, BatchNorm2d(width_t))


def _check(probe: Probe) -> None:
    stages = [stages_s for stages_s, _ in paired_stages("ofd", probe)]
    for who, out in (("student", probe.student), ("teacher", probe.teacher)):
        if out is not None and len(out.preacts) != len(stages):
            raise OtkdError(f"ofd needs the {who}'s stages before their last ReLU: `preacts`, one for each stage")
    if len(probe.norms_t) != len(stages):
        raise OtkdError(
            "ofd needs scale and shift of the teacher's batch norm before each stage's last ReLU: `Probe.norms_t`, "
            f"{len(stages)} pairs; got {len(probe.norms_t)}. Choose a teacher that names them"
        )
