"""NST: neuron selectivity transfer (Huang & Wang, 2017, arXiv:1707.01219), with the polynomial kernel of degree 2.

Each channel's map, flattened and divided by its L2 norm, is one sample of what the channel selects in the image; the
loss is the squared maximum mean discrepancy between the student's samples s_i and the teacher's t_j with the kernel
k(x, y) = ⟨x, y⟩²,
Σ_l mean_b [mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) − 2 mean_ij k(s_i, t_j)] over the stages l (not the stem).
The spatially larger map is average-pooled to the smaller. The paper takes the last map alone, RepDistiller and
mdistiller every stage.

As Σ_ij ⟨x_i, y_j⟩² = ‖X Yᵀ‖² = ⟨XᵀX, YᵀY⟩ it is found from matrices between channels or between positions, whichever
are the smaller: the public codes keep B × C × C × HW numbers. Between positions it is ‖SᵀS / C_s − TᵀT / C_t‖².
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import same_stages
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import paired_stages, same_size
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Discrepancy of what the channels select, at every stage."""

    weight: NonNegativeFloat = 50.0
    """Factor of this term in the weighted sum."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the two networks' stages cannot be paired."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)


class Loss(TermLoss):
    """Squared maximum mean discrepancy of the channels' maps, summed over stages."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        paired_stages("nst", probe)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        pairs = zip(out_s.stages, out_t.stages, strict=True)
        with full_precision(out_s.logits):
            return LossOutput(torch.stack([_stage(map_s, map_t.detach()) for map_s, map_t in pairs]).sum())


def _stage(map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    map_s, map_t = same_size(widen(map_s_BCHW), widen(map_t_BDHW))
    x_BCP, y_BDP = (F.normalize(map_.flatten(2), dim=-1) for map_ in (map_s, map_t))
    positions, channels = x_BCP.shape[2], max(x_BCP.shape[1], y_BDP.shape[1])
    by = _by_positions if positions < channels else _by_channels
    return by(x_BCP, y_BDP).mean()


def _by_channels(x_BCP: Tensor, y_BDP: Tensor) -> Tensor:
    own = _mean_kernel(x_BCP, x_BCP) + _mean_kernel(y_BDP, y_BDP)
    return own - 2 * _mean_kernel(x_BCP, y_BDP)


def _mean_kernel(x_BCP: Tensor, y_BDP: Tensor) -> Tensor:
    return (x_BCP @ y_BDP.mT).square().mean((1, 2))


def _by_positions(x_BCP: Tensor, y_BDP: Tensor) -> Tensor:
    return (_gram(x_BCP) - _gram(y_BDP)).square().sum((1, 2))


def _gram(x_BCP: Tensor) -> Tensor:
    """Products (B, P, P) between positions, mean over channels."""
    return x_BCP.mT @ x_BCP / x_BCP.shape[1]
