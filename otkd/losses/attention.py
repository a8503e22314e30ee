"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, Sec. 3.1, Eq. 2).

A map's attention is Σ_c |f_c|^p over space, flattened and divided by its L2 norm; the loss compares the two networks'
attention at every stage (not the stem) and adds the stages up. The spatially larger map is average-pooled to the
smaller.

`variant="code"` (default) averages squared differences over batch and space, as the authors' release, RepDistiller and
mdistiller do; hence the weight of 1000. `variant="paper"` is the mean over the batch of the L2 norm ‖A_s − A_t‖, as in
the article (whose factor β/2 is the weight) and in torchdistill's mode of that name. torchdistill takes the last two
stages only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
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
    """Attention transfer at every stage."""

    weight: NonNegativeFloat = 1000.0
    """Factor of this term in the weighted sum."""
    p: PositiveInt = 2
    """Power of the activations that are summed over channels."""
    variant: Literal["code", "paper"] = "code"
    """`code` averages squared differences; `paper` takes the norm printed in the article."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the two networks' stages cannot be paired."""
        yield from super().check(student, teacher)
        yield from same_stages(student, teacher)


class Loss(TermLoss):
    """Distance of the two networks' normalised attention maps, summed over stages."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.p, self.variant = config.p, config.variant
        paired_stages("attention", probe)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        pairs = zip(out_s.stages, out_t.stages, strict=True)
        return LossOutput(torch.stack([self._stage(map_s, map_t.detach()) for map_s, map_t in pairs]).sum())

    def _stage(self, map_s_BCHW: Tensor, map_t_BCHW: Tensor) -> Tensor:
        map_s, map_t = same_size(widen(map_s_BCHW), widen(map_t_BCHW))
        gap_BP = self._attention(map_s) - self._attention(map_t)
        if self.variant == "paper":
            return torch.linalg.vector_norm(gap_BP, dim=-1).mean()
        return gap_BP.square().mean()

    def _attention(self, map_BCHW: Tensor) -> Tensor:
        return F.normalize(map_BCHW.abs().pow(self.p).mean(1).flatten(1), dim=-1)
