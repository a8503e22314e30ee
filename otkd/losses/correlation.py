"""CC: correlation congruence (Peng et al., ICCV 2019), in the two forms that go by its name.

`variant: pairs` (default) is RepDistiller's: learned linear maps bring both embeddings to `width` dimensions,
δ_b = |map_s(h_s) − map_t(h_t)| of image b, and the loss is Σ_b ⟨δ_b, δ_{b+1}⟩ / (B − 1) over neighbours in the batch.
It depends on the batch's order, and two maps onto one constant are a trivial minimum.

`variant: gaussian` is the article's: ‖K_s − K_t‖_F² / B², where K holds the Gaussian kernel of all pairs expanded in
their products, K(x, y) = e^{−2γ} Σ_{p ≤ P} (2γ)^p / p! ⟨x, y⟩^p. The expansion holds for embeddings of length 1
(`unit`). torchdistill neither squares the norm (`squared: false`) nor brings vectors to length 1 (`unit: false`), and
puts a linear layer before the kernel, which is left out here: the kernel needs no equal widths. Its weight is 0.003.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.losses.relations import unit
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Correlations between the embeddings of a batch."""

    weight: NonNegativeFloat = 0.02
    """Factor of this term in the weighted sum; 0.02 is that of `pairs`."""
    variant: Literal["pairs", "gaussian"] = "pairs"
    """`pairs` multiplies the mismatches of neighbours in the batch; `gaussian` compares kernel matrices."""
    width: PositiveInt = 128
    """Of `pairs`: the dimensions that both embeddings are brought to."""
    gamma: PositiveFloat = 0.4
    """Of `gaussian`: γ of the kernel exp(−γ ‖x − y‖²)."""
    order: PositiveInt = 2
    """Of `gaussian`: the highest power P of the expansion."""
    unit: bool = True
    """Of `gaussian`: bring embeddings to length 1 first, as the expansion supposes."""
    squared: bool = True
    """Of `gaussian`: square the norm of the difference."""


class Loss(TermLoss):
    """Either form on both networks' embeddings (B, D)."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        embeddings = (probe.student.embedding, teacher_of("correlation", probe).embedding)
        self.config = config
        self.ordered = config.variant == "pairs"
        if config.variant == "pairs":
            self.map_s, self.map_t = (nn.Linear(x.shape[1], config.width) for x in embeddings)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            s_BD, t_BE = widen(out_s.embedding), widen(out_t.embedding.detach())
            compare = self._pairs if self.config.variant == "pairs" else self._gaussian
            return LossOutput(compare(s_BD, t_BE))

    def _pairs(self, s_BD: Tensor, t_BE: Tensor) -> Tensor:
        gap_BF = (self.map_s(s_BD) - self.map_t(t_BE)).abs()
        return (gap_BF[:-1] * gap_BF[1:]).sum() / max(len(gap_BF) - 1, 1)

    def _gaussian(self, s_BD: Tensor, t_BE: Tensor) -> Tensor:
        gap_BB = self._kernel(s_BD) - self._kernel(t_BE)
        if self.config.squared:
            return gap_BB.square().mean()
        return torch.linalg.vector_norm(gap_BB) / gap_BB.numel()

    def _kernel(self, x_BD: Tensor) -> Tensor:
        x_BD = unit(x_BD) if self.config.unit else x_BD
        product_BB, gamma = 2 * self.config.gamma * (x_BD @ x_BD.mT), self.config.gamma
        powers = [product_BB**p / math.factorial(p) for p in range(self.config.order + 1)]
        return math.exp(-2 * gamma) * torch.stack(powers).sum(0)
