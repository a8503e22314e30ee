"""KD²M: matching the distributions of both networks' embeddings over a batch (Fernandes Montesuma, GSI 2025, "KD²M: A
unifying framework for feature knowledge distillation").

The student's embeddings x and the teacher's y of a batch are two samples of B points, and `match` is a distance between
the distributions they come from:

- `w2`: W₂² of the samples, the exact optimal transport cost at squared Euclidean distances;
- `gaussian`: W₂² of the Gaussians fitted to them, diagonal: ‖μ_x − μ_y‖² + ‖σ_x − σ_y‖²;
- `gromov`: Gromov–Wasserstein between Euclidean distances inside either sample; asks for no common width;
- `joint`: W₂² of samples with labels, at ‖x_i − y_j‖² / max + `labels` · ‖z_s,i − z_t,j‖² between points and logits z;
- `mmd_linear`, `mmd_rbf`: maximum mean discrepancy with the kernel ⟨x, y⟩, which is ‖μ_x − μ_y‖², or
  exp(−d²/(2 s²)), s the mean distance of all points, each to itself included;
- `kl_gaussian`: KL(student ‖ teacher) of the diagonal Gaussians.

`by_class` matches the images of each class by themselves and takes the mean over the classes of the batch.

The author's release (github.com/eddardd/kddm) departs from this, and three of its nine losses do not run:
- it sums over classes where here is the mean, in code that ends in a TypeError;
- Gromov–Wasserstein ends in one as well: the plan's type is asked for in a way that is never true;
- its joint cost compares the student with the student, x_i with x_j, and detaches it, so that the teacher's features
  do not enter and the student's get no gradient. Here it is what it means to be, divided by its detached maximum;
- it needs equal widths. Here a learned linear map brings the student to the teacher's where they differ;
- it adds 1e-9 to the deviations of the KL divergence, here 1e-5 to the variances, and a class, or a batch, of a single
  image, which has none, takes no part in it.
The weight is the release's `coef`. Gradients of the transport distances hold the plan fixed, there as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.clouds import Clouds, transport
from otkd.ot.cost import euclidean, normalized, positive, sqeuclidean
from otkd.ot.precision import full_precision, widen
from otkd.ot.result import TransportResult

VARIANCE = 1e-5
"""Added to the variances of the KL divergence, which divides by them."""
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "w2": ("exact", {}),
    "gaussian": ("gaussian", {"covariance": "diagonal"}),
    "gromov": ("gromov", {"kind": "exact"}),
    "joint": ("exact", {}),
}
"""What the transport distances are solved by: a solver and its options."""
ANY_WIDTHS = ("gromov",)
"""Distances that compare clouds of different widths."""


class Config(TermConfig):
    """A distance between the distributions of both networks' embeddings."""

    weight: NonNegativeFloat = 1e-4
    """Factor of this term in the weighted sum."""
    match: Literal["w2", "gaussian", "gromov", "joint", "mmd_linear", "mmd_rbf", "kl_gaussian"] = "w2"
    """The distance."""
    by_class: bool = False
    """Match each class' images by themselves; the mean over the classes of the batch."""
    labels: NonNegativeFloat = 1.0
    """`joint` alone: factor of the logits' squared distance, beside points' distances of at most 1."""
    projection: Literal["auto", "none", "linear"] = "auto"
    """Learned linear map of the student to the teacher's width; `auto` builds one where the distance needs it."""

    @property
    def one_label(self) -> bool:
        """Whether images are matched class by class."""
        return self.by_class

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the widths differ and nothing brings them together."""
        yield from super().check(student, teacher)
        if teacher is not None:
            yield from self.check_widths(student.embedding, teacher.embedding)

    def check_widths(self, student: int, teacher: int) -> Iterator[Problem]:
        """The same, of widths."""
        if self.projection == "none" and student != teacher and self.match not in ANY_WIDTHS:
            yield Problem("projection", f"none, but the student is {student} wide and the teacher {teacher}; use auto.")


class Loss(TermLoss):
    """The distance between both networks' embeddings (B, D), or its mean over classes."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("kd2m matches a teacher's embeddings, and there is none")
        width_s, width_t = (out.embedding.shape[1] for out in (probe.student, probe.teacher))
        for problem in config.check_widths(width_s, width_t):
            raise OtkdError(f"kd2m.{problem}")
        self.config = config
        self.solver = plugins.configure("ot", *SOLVERS[config.match]) if config.match in SOLVERS else None
        fits = width_s == width_t or config.match in ANY_WIDTHS
        keep = config.projection == "none" or (config.projection == "auto" and fits)
        self.projection = nn.Identity() if keep else nn.Linear(width_s, width_t)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.embedding):
            samples = Samples(
                self.projection(widen(out_s.embedding)),
                widen(out_t.embedding.detach()),
                widen(out_s.logits),
                widen(out_t.logits.detach()),
            )
            match = MATCHES[self.config.match]
            results = [match(samples.of(rows_GN), self.config, self.solver) for rows_GN in self._groups(batch.target)]
        if not results:
            return LossOutput(0 * samples.x_BD.sum())
        parts = {name: torch.cat([parts[name] for _, parts in results]).mean() for name in results[0][1]}
        return LossOutput(torch.cat([value_G for value_G, _ in results]).mean(), parts)

    def _groups(self, target_B: Tensor) -> list[Tensor]:
        """The images (G, N) to match by themselves, all of one N together."""
        whole = [torch.arange(len(target_B), device=target_B.device)[None]]
        groups = _of_classes(target_B) if self.config.by_class else whole
        least = 2 if self.config.match == "kl_gaussian" else 1
        return [rows_GN for rows_GN in groups if rows_GN.shape[1] >= least]


class Samples(NamedTuple):
    """What both networks say of the same images: embeddings and logits; (G, N, …) once grouped."""

    x_BD: Tensor
    y_BE: Tensor
    logits_s_BK: Tensor
    logits_t_BK: Tensor

    def of(self, rows_GN: Tensor) -> Samples:
        """G samples of N images each: (G, N, D) and so on."""
        return Samples(*(part[rows_GN] for part in self))


def _of_classes(target_B: Tensor) -> list[Tensor]:
    """Images (G, N) of the G classes of which there are N, for each N that occurs."""
    order_B = target_B.argsort(stable=True)
    sizes_K = target_B.unique(return_counts=True)[1]
    starts_K = sizes_K.cumsum(0) - sizes_K
    return [
        order_B[starts_K[sizes_K == size][:, None] + torch.arange(size, device=order_B.device)]
        for size in sizes_K.unique().tolist()
    ]


Matched = tuple[Tensor, dict[str, Tensor]]
"""The distance of each pair of samples (G), and evidence of each."""


def _w2(samples: Samples, config: Config, solver: Any) -> Matched:
    return _evidence(transport(Clouds(samples.x_BD, samples.y_BE, "sqeuclidean", "none"), None, None, solver))


def _gromov(samples: Samples, config: Config, solver: Any) -> Matched:
    return _evidence(transport(Clouds(samples.x_BD, samples.y_BE, "euclidean", "none"), None, None, solver))


def _joint(samples: Samples, config: Config, solver: Any) -> Matched:
    cost_GNN = normalized(sqeuclidean(samples.x_BD, samples.y_BE), "max")
    cost_GNN = cost_GNN + config.labels * sqeuclidean(samples.logits_s_BK, samples.logits_t_BK)
    return _evidence(plugins.load("ot", solver.name).solve(cost_GNN, None, None, solver))


def _evidence(result: TransportResult) -> Matched:
    return result.value_B, {"converged": result.converged_B.to(result.value_B.dtype)}


def _mmd_linear(samples: Samples, config: Config, solver: Any) -> Matched:
    return (samples.x_BD.mean(-2) - samples.y_BE.mean(-2)).square().sum(-1), {}


def _mmd_rbf(samples: Samples, config: Config, solver: Any) -> Matched:
    """Means of the kernel within and between; s has no gradient, and is 1 where all points are one."""
    x_GND, y_GND = samples.x_BD, samples.y_BE
    pairs = ((x_GND, x_GND), (y_GND, y_GND), (x_GND, y_GND))
    with torch.no_grad():
        distances_3G11 = torch.stack([euclidean(*pair).mean((-2, -1), keepdim=True) for pair in pairs])
        s_G11 = positive(distances_3G11.mean(0))
    within_s_G, within_t_G, between_G = (
        torch.exp(-sqeuclidean(*pair) / (2 * s_G11.square())).mean((-2, -1)) for pair in pairs
    )
    return within_s_G + within_t_G - 2 * between_G, {}


def _kl_gaussian(samples: Samples, config: Config, solver: Any) -> Matched:
    (mean_s_GD, var_s_GD), (mean_t_GD, var_t_GD) = (
        (part.mean(-2), part.var(-2, correction=0) + VARIANCE) for part in (samples.x_BD, samples.y_BE)
    )
    gap_GD = (mean_s_GD - mean_t_GD).square()
    return ((var_s_GD + gap_GD) / var_t_GD - 1 + var_t_GD.log() - var_s_GD.log()).sum(-1) / 2, {}


MATCHES: dict[str, Callable[[Samples, Config, Any], Matched]] = {
    "w2": _w2,
    "gaussian": _w2,
    "gromov": _gromov,
    "joint": _joint,
    "mmd_linear": _mmd_linear,
    "mmd_rbf": _mmd_rbf,
    "kl_gaussian": _kl_gaussian,
}
