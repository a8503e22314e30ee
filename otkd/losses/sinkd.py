"""SinKD: Sinkhorn distance between the predictions of a batch (Cui et al., LREC-COLING 2024, "Sinkhorn Distance
Minimization for Knowledge Distillation", the batch-wise reformulation).

Images are the points: C_ij = ‖softmax(z_s,i / T) − softmax(z_t,j / T)‖₁ is the cost between student's image i and
teacher's image j. The kernel exp(−C/λ) has its rows and then its columns divided by their sums, `iterations` times, and
the loss is ⟨P, C⟩ of the plan that comes out. Nothing tells the plan which point belongs to which: see `alignment`.

The authors add it to cross-entropy and to Hinton's KL divergence, (1 − α) CE + α KL + β SinKD, with α = β = 0.8 in
their script for MNLI: the first two are the terms `ce` and `kd`.

As in the authors' release the plan's columns sum to 1 each, so that its mass is B and the loss grows with the batch;
λ = 0.1, 20 iterations, T = 2, and gradients go through the iterations. There the loss carries a factor of 0.002 before
β (0.0008 for language models) in batches of 16; the default of `weight` is 0.8 · 0.002. `reduction: mean` divides by B.
Disagreement: here kernel and plan are kept as logarithms, so that no λ underflows.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Sinkhorn distance between both networks' softened predictions of a batch."""

    weight: NonNegativeFloat = 0.0016
    """Factor of this term in the weighted sum."""
    temperature: PositiveFloat = 2.0
    """T, by which both networks' logits are divided."""
    epsilon: PositiveFloat = 0.1
    """λ, the entropic strength, in units of the cost, which is between 0 and 2."""
    iterations: PositiveInt = 20
    """Times that rows and columns are normalised."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the images: a plan of mass B, as the authors, or of mass 1."""
    gradient: Literal["unrolled", "envelope"] = "unrolled"
    """Through the normalisations, as the authors, or at the fixed plan, as the other terms here."""


class Loss(TermLoss):
    """⟨P, C⟩ between the predictions of a batch."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            p_s_BK, p_t_BK = (
                torch.softmax(widen(logits) / self.config.temperature, -1)
                for logits in (out_s.logits, out_t.logits.detach())
            )
            cost_BB = torch.cdist(p_s_BK, p_t_BK, p=1)
            plan_BB = self._plan(cost_BB)
            value = (plan_BB * cost_BB).sum()
        size, rows_B = len(cost_BB), plan_BB.detach().sum(1)
        parts = {
            "alignment": plan_BB.detach().diagonal().sum() / size,
            "marginal_error": (rows_B - 1).abs().sum() / size,
        }
        return LossOutput(value / size if self.config.reduction == "mean" else value, parts)

    def _plan(self, cost_BB: Tensor) -> Tensor:
        """The normalised kernel; its columns sum to 1, its rows nearly."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.gradient == "unrolled"):
            log_BB = -cost_BB / self.config.epsilon
            for _ in range(self.config.iterations):
                log_BB = torch.log_softmax(torch.log_softmax(log_BB, 1), 0)
            return log_BB.exp()
