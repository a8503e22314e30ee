"""VID: variational information distillation (Ahn, Hu, Damianou, Lawrence & Dai, CVPR 2019).

A lower bound of the mutual information between both networks' maps: how likely the teacher's map t is under a normal
distribution whose mean μ(s) is regressed from the student's map and whose variance each channel of the teacher learns,
Σ_l mean ½ [(t − μ(s))² / σ_c² + log σ_c²] over the stages l (not the stem), σ_c² = softplus(ρ_c) + 10⁻⁵, the mean over
batch, channels and space. μ is three 1 × 1 convolutions without bias, ReLU between, as wide as the teacher's map. The
spatially larger map is average-pooled to the smaller.

The variance is learned in the paper, RepDistiller and torchdistill; in mdistiller it never leaves its first value,
because its optimiser does not see it (`learned: false`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import same_stages
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import paired_stages, same_size
from otkd.ot.precision import widen


class Config(TermConfig):
    """Likelihood of the teacher's maps given the student's, at every stage."""

    initial_variance: Annotated[float, Field(ge=1e-3)] = 5.0
    """Variance σ² of every channel at the start."""
    learned: bool = True
    """Train the variances; off, they stay as they are."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the two networks' stages cannot be paired."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)


EPSILON = 1e-5


class Loss(TermLoss):
    """Negative log-likelihood of the teacher's maps without its constant, summed over stages."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        pairs = paired_stages("vid", probe)
        self.likelihoods = nn.ModuleList(
            Likelihood(map_s.shape[1], map_t.shape[1], config.initial_variance, config.learned)
            for map_s, map_t in pairs
        )

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        pairs = zip(self.likelihoods, out_s.stages, out_t.stages, strict=True)
        values = [likelihood(map_s, map_t.detach()) for likelihood, map_s, map_t in pairs]
        return LossOutput(torch.stack(values).sum(), {"variance": self._mean_variance()})

    @torch.no_grad()
    def _mean_variance(self) -> Tensor:
        return torch.cat([cast(Likelihood, part).variance() for part in self.likelihoods]).mean()


class Likelihood(nn.Module):
    """One stage: a normal distribution of the teacher's map (B, D, H, W) given the student's (B, C, H, W)."""

    rho_D: Tensor

    def __init__(self, channels_s: int, channels_t: int, variance: float, learned: bool) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(channels_s, channels_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_t, channels_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels_t, channels_t, 1, bias=False),
        )
        rho_D = torch.full((channels_t,), _softplus_inverse(variance - EPSILON))
        if learned:
            self.rho_D = nn.Parameter(rho_D)
        else:
            self.register_buffer("rho_D", rho_D)

    def variance(self) -> Tensor:
        """σ² (D,)."""
        return F.softplus(self.rho_D) + EPSILON

    def forward(self, map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
        map_s, map_t = same_size(widen(map_s_BCHW), widen(map_t_BDHW))
        variance_D11 = self.variance()[:, None, None]
        gap = map_t - widen(self.regressor(map_s))
        return (gap.square() / variance_D11 + variance_D11.log()).mean() / 2


def _softplus_inverse(y: float) -> float:
    return y + math.log(-math.expm1(-y))
