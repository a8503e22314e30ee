"""ReviewKD: distilling knowledge via knowledge review (Chen, Liu, Zhao & Jia, CVPR 2021, Sec. 3).

From the deepest level to the first, the student's levels (its stages, then the pooled vector as a 1 × 1 map) are
fused: x_l = conv1×1+BN(f_l); with the fused level above, brought to x_l's size, (a, b) = sigmoid(conv1×1([x_l, above]))
and fused_l = a x_l + b above; the output is conv3×3+BN(fused_l) with the teacher's channels. All fused maps have
min(512, D) channels, D the width of the student's pooled vector. Each output is compared with the teacher's level
(stages before their last ReLU, then the pooled vector) by the hierarchical context loss: mean squared error of the maps
(weight 1) and of both pooled to 4 × 4, 2 × 2, 1 × 1 where the map is higher (½, ¼, ⅛), divided by the weights' sum.
The levels are added up. Where sizes differ, the fused map is brought to the teacher's size by its nearest cells.

The student's stages are taken after their ReLU, as the release does on CIFAR-100; on ImageNet it takes them before
(`preacts: true`), and the warm-up is one epoch. The weight of 1 is mdistiller's default; resnet32x4 → resnet8x4 takes 5
there. Both want sizes and channels typed by hand; mdistiller reads a bound on the width and ignores it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig, Warmup, WeightSchedule
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import has_preacts, same_stages
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import BatchNorm2d, paired_stages, teacher_of
from otkd.ot.precision import widen

WIDEST = 512
"""Most channels of the fused maps."""


class Config(TermConfig):
    """The student's levels, each fused with those above it, against the teacher's."""

    schedule: WeightSchedule = Warmup(name="warmup", epochs=20)
    """How the weight changes from epoch to epoch of the main stage: `{name: warmup, epochs}` or `{name: cosine, start,
    end}`; null keeps it constant."""
    preacts: bool = False
    """Take the student's stages before their last ReLU, as the authors do on ImageNet."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where stages cannot be paired or are not shown before their ReLU."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)
        yield from has_preacts(student if self.preacts else None, teacher)


class Loss(TermLoss):
    """Hierarchical context loss of the fused levels, summed over levels."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.preacts = config.preacts
        _check(config, probe)
        levels_s, levels_t = self._levels_s(probe.student), _levels_t(teacher_of("reviewkd", probe))
        width, last = min(WIDEST, probe.student.embedding.shape[1]), len(levels_s) - 1
        self.fusions = nn.ModuleList(
            Fusion(level_s.shape[1], width, level_t.shape[1], fuses=i < last)
            for i, (level_s, level_t) in enumerate(zip(levels_s, levels_t, strict=True))
        )

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        values, above_BMHW = [], None
        levels = list(zip(self.fusions, self._levels_s(out_s), _levels_t(out_t), strict=True))
        for fusion, level_s_BCHW, level_t_BDHW in reversed(levels):
            made_BDHW, above_BMHW = fusion(level_s_BCHW, above_BMHW, level_t_BDHW.shape[2:])
            values.append(context(widen(made_BDHW), widen(level_t_BDHW.detach())))
        return LossOutput(torch.stack(values).sum())

    def _levels_s(self, out: ModelOutput) -> tuple[Tensor, ...]:
        return (*(out.preacts if self.preacts else out.stages), out.embedding[:, :, None, None])


class Fusion(nn.Module):
    """One level: the student's map (B, C, H, W) and the fused map above it, to the teacher's channels.

    Args:
        width_s: C.
        width: M, channels of fused maps.
        width_t: D, channels of the output.
        fuses: whether there is a level above.
    """

    def __init__(self, width_s: int, width: int, width_t: int, fuses: bool) -> None:
        super().__init__()
        into, out = nn.Conv2d(width_s, width, 1, bias=False), nn.Conv2d(width, width_t, 3, padding=1, bias=False)
        for convolution in (into, out):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # as the authors' release
        self.into, self.out = nn.Sequential(into, BatchNorm2d(width)), nn.Sequential(out, BatchNorm2d(width_t))
        self.shares = nn.Conv2d(2 * width, 2, 1) if fuses else None

    def forward(self, map_BCHW: Tensor, above_BMHW: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The output (B, D, *size) and the fused map (B, M, *size)."""
        fused = self.into(map_BCHW)
        if self.shares is not None and above_BMHW is not None:
            above = _resized(above_BMHW, fused.shape[2:])
            shares_B2HW = self.shares(torch.cat([fused, above], 1)).sigmoid()
            fused = fused * shares_B2HW[:, :1] + above * shares_B2HW[:, 1:]
        fused = _resized(fused, size)
        return self.out(fused), fused


def context(map_s_BCHW: Tensor, map_t_BCHW: Tensor) -> Tensor:
    """The hierarchical context loss of two maps of one shape."""
    value, weight, total = F.mse_loss(map_s_BCHW, map_t_BCHW), 1.0, 1.0
    for size in (4, 2, 1):
        if size < map_s_BCHW.shape[2]:
            pooled_s, pooled_t = (F.adaptive_avg_pool2d(m, size) for m in (map_s_BCHW, map_t_BCHW))
            weight /= 2
            value = value + weight * F.mse_loss(pooled_s, pooled_t)
            total += weight
    return value / total


def _levels_t(out: ModelOutput) -> tuple[Tensor, ...]:
    return (*out.preacts, out.embedding[:, :, None, None])


def _resized(map_BCHW: Tensor, size: torch.Size) -> Tensor:
    return map_BCHW if map_BCHW.shape[2:] == size else F.interpolate(map_BCHW, tuple(size), mode="nearest")


def _check(config: Config, probe: Probe) -> None:
    stages = len(paired_stages("reviewkd", probe))
    if len(teacher_of("reviewkd", probe).preacts) != stages:
        raise OtkdError("reviewkd needs the teacher's stages before their last ReLU: `preacts`, one for each stage")
    if config.preacts and len(probe.student.preacts) != stages:
        raise OtkdError(
            "reviewkd.preacts needs the student's stages before their last ReLU, which it does not show; "
            "set `preacts: false`"
        )
