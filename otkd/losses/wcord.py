"""WCoRD: Wasserstein contrastive representation distillation (Chen, Wang, Gan, Liu, Henao & Carin, CVPR 2021).

Global part, the dual form: Kantorovich–Rubinstein's lower bound of W₁ between the joint distribution of both networks'
embeddings of one image and the product of their marginals,
E_joint[g(s, t)] − E_product[g(s, t)] ≤ W₁ for every 1-Lipschitz critic g,
which critic and student raise together: what the student's embedding tells of the teacher's. The critic is bilinear as
CRD's (Tian, Krishnan & Isola, ICLR 2020): linear embeddings to `width` dimensions, of spectral norm 1 (Miyato et al.,
ICLR 2018), shortened to length 1 where longer; their product divided by √2 is 1-Lipschitz in the pair (s, t).

Local part, the primal form: the transport cost, 1 − cosine, between the student's and the teacher's embeddings of the
batch. It is minimised, not raised, so the teacher's side must not be learned: a linear map brings the student to the
teacher's width where it differs, and the teacher stays as it is.

The loss is −`global_weight` · bound + `local_weight` · cost.

Differences from the article: its product of marginals is sampled from a memory of training images, as CRD's; here it is
all B² pairs of the batch, and the bound is one for the batch's own distributions. The unit ball is ours: spectral norms
alone leave a bilinear critic steep far from 0. No code of the authors is known, and the parts' weights are not certain
to be theirs: `global_weight` is CRD's, `local_weight` an order of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.seeds import derive
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.clouds import Clouds, transport
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Wasserstein distances between embeddings: raised between joint and product, lowered between both networks."""

    form: Literal["both", "dual", "primal"] = "both"
    """The parts in use: `dual` is the global contrast, `primal` the local transport."""
    global_weight: NonNegativeFloat = 0.8
    """Factor of the dual part within the term."""
    local_weight: NonNegativeFloat = 0.05
    """Factor of the primal part within the term."""
    width: PositiveInt = 128
    """Dimensions in which the dual part's critic compares embeddings."""
    solver: plugins.choice("ot") = "sinkhorn"  # type: ignore[valid-type]
    """How the primal part's plan is found, at costs from 0 to 2: a solver's name, or {name, its options}."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the solver is not defined for the cosine."""
        yield from super().check(student, teacher)
        if self.form != "dual" and "cosine" not in self.solver.costs:
            yield Problem(
                "solver", f"{self.solver.name} is not defined for the cosine; it takes {', '.join(self.solver.costs)}."
            )


class Loss(TermLoss):
    """The weighted parts on both networks' embeddings (B, D)."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("wcord compares with a teacher's embedding, and there is none")
        width_s, width_t = (out.embedding.shape[1] for out in (probe.student, probe.teacher))
        self.config = config
        self.critic = Critic(width_s, width_t, config.width) if config.form != "primal" else None
        needs_map = config.form != "dual" and width_s != width_t
        self.projection = nn.Linear(width_s, width_t) if needs_map else nn.Identity()
        self._seed, self._step = int(torch.randint(2**31, ())), 0

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            s_BD, t_BE = widen(out_s.embedding), widen(out_t.embedding.detach())
            values, parts = [], {}
            if self.critic is not None:
                bound = self._bound(self.critic(s_BD, t_BE))
                values.append(-self.config.global_weight * bound)
                parts["dual"] = bound.detach()
            if self.config.form != "dual":
                seed = derive(self._seed, "primal", self._step)
                clouds = Clouds(self.projection(s_BD), t_BE, "cosine", "none", seed)
                result = transport(clouds, None, None, self.config.solver)
                values.append(self.config.local_weight * result.value_B)
                parts["primal"] = result.value_B.detach()
                parts["converged"] = result.converged_B.to(s_BD.dtype)
        self._step += self.training
        return LossOutput(torch.stack(values).sum(), parts)

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, which a solver's random draws follow."""
        return {"step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Read it back."""
        self._step = state["step"]

    @staticmethod
    def _bound(score_BB: Tensor) -> Tensor:
        """Mean score of the pairs that belong together over that of all pairs."""
        return score_BB.diagonal().mean() - score_BB.mean()


class Critic(nn.Module):
    """A 1-Lipschitz function of pairs: scores (B, C) between all student's (B, D) and all teacher's vectors (C, E)."""

    def __init__(self, width_s: int, width_t: int, width: int) -> None:
        super().__init__()
        self.embed_s, self.embed_t = (
            nn.utils.parametrizations.spectral_norm(nn.Linear(inputs, width, bias=False))
            for inputs in (width_s, width_t)
        )

    def forward(self, s_BD: Tensor, t_CE: Tensor) -> Tensor:
        return _into_ball(self.embed_s(s_BD)) @ _into_ball(self.embed_t(t_CE)).mT / math.sqrt(2)


def _into_ball(x_BD: Tensor) -> Tensor:
    """The nearest vectors of length 1 at most."""
    return x_BD / torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True).clamp_min(1)
