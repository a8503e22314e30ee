"""Optimal transport between the student's and the teacher's batch of representations.

Each image is one point, its tap in either network; the loss is the cost of moving the student's cloud of points onto
the teacher's. Nothing tells the plan which point belongs to which: `alignment`, the share of mass that moves between
the two views of the same image, says how far it finds out.

Disagreements: KD2M takes the exact squared-Wasserstein plan of the penultimate features and needs equal widths
(`solver: exact`, `normalize: none`, `projection: none`); WKD transports between classes or between Gaussians of one
image's cells, by ten unrolled Sinkhorn steps. Here gradients hold the plan fixed (`otkd.ot`), and the cost is divided
by its mean, so that a solver's epsilon and the weight mean the same at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from otkd.core import plugins
from otkd.core.cards import Layer, ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import same_size
from otkd.ot.cost import COSTS, normalized
from otkd.ot.precision import full_precision, widen
from otkd.ot.result import TransportResult


def _width(card: ModelCard, layer: Layer) -> int:
    if layer == "embedding":
        return card.embedding
    if layer == "logits":
        return 0  # the same classes in both networks
    return card.channels[layer if isinstance(layer, int) else card.taps.index(layer)]


class Config(TermConfig):
    """Optimal transport between two batches of representations."""

    weight: NonNegativeFloat = 10.0
    """Factor of this term in the weighted sum."""
    points: Literal["batch"] = "batch"
    """What is transported: `batch` makes each image of the batch one point."""
    layer: Layer = "embedding"
    """Where: `embedding`, `logits`, or a feature map by index (0 is the stem) or name."""
    cost: Literal["sqeuclidean", "euclidean", "cosine"] = "sqeuclidean"
    """Cost of moving one point onto another."""
    normalize: Literal["mean", "max", "median", "none"] = "mean"
    """What the costs of a batch are divided by; the divisor carries no gradient."""
    solver: plugins.choice("ot") = "sinkhorn"  # type: ignore[valid-type]
    """How the plan is found: a solver's name, or {name, its options}."""
    projection: Literal["auto", "none", "linear", "conv"] = "auto"
    """Learned map of the student to the teacher's width: `conv` is 1×1 on a map, `linear` takes whole flattened points.

    `auto` builds one only where the widths differ: `conv` on a map, else `linear`.
    """

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the layer is missing or the projection does not fit it."""
        problems = list(super().check(student, teacher))
        yield from problems
        if problems or teacher is None:
            return
        if self.projection == "conv" and self.layer in ("embedding", "logits"):
            yield Problem(
                "projection", f"conv takes a feature map, {self.layer} is a vector; allowed: auto, none, linear."
            )
        widths = [_width(card, self.layer) for card in (student, teacher)]
        if self.projection == "none" and widths[0] != widths[1]:
            yield Problem(
                "projection", f"none, but the student is {widths[0]} wide there and the teacher {widths[1]}; use auto."
            )


class Loss(TermLoss):
    """Transport cost from the student's to the teacher's points (B, D), equal weights."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("transport goes to a teacher's representations, and there is none")
        self.config = config
        solver = plugins.load("ot", config.solver.name)
        self.solve, self.solver_config = solver.solve, solver.Config.model_validate(config.solver.model_dump())
        self.projection = _projection(config, *_taps(config.layer, probe.student, probe.teacher))

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        tap_s, tap_t = _taps(self.config.layer, out_s, out_t)
        points_s_BD, points_t_BD = self.projection(tap_s).flatten(1), tap_t.flatten(1)
        with full_precision(points_s_BD):
            cost_BB = COSTS[self.config.cost](widen(points_s_BD), widen(points_t_BD))
            result = self.solve(normalized(cost_BB, self.config.normalize), None, None, self.solver_config)
        return LossOutput(result.value_B.mean(), _parts(result))


def _taps(layer: Layer, out_s: ModelOutput, out_t: ModelOutput) -> tuple[Tensor, Tensor]:
    """Both networks' tensors at `layer`, feature maps of the same size; the teacher's detached."""
    tap_s, tap_t = out_s.layer(layer), out_t.layer(layer).detach()
    return same_size(tap_s, tap_t) if tap_s.dim() == 4 else (tap_s, tap_t)


def _projection(config: Config, tap_s: Tensor, tap_t: Tensor) -> nn.Module:
    width_s, width_t = tap_s.shape[1], tap_t.shape[1]
    is_map = tap_s.dim() == 4
    if config.projection == "conv" and not is_map:
        raise OtkdError(f"transport.projection: conv takes a feature map, {config.layer} is a vector; use linear")
    if config.projection == "none" and width_s != width_t:
        raise OtkdError(f"transport.projection: none, but the widths are {width_s} and {width_t}; use auto")
    if config.projection == "none" or (config.projection == "auto" and width_s == width_t):
        return nn.Identity()
    if is_map and config.projection != "linear":
        return nn.Conv2d(width_s, width_t, 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(tap_s[0].numel(), tap_t[0].numel()))


def _parts(result: TransportResult) -> dict[str, Tensor]:
    error = result.marginal_error_B.detach()
    parts = {
        "marginal_error": error.max(),
        "converged": result.converged_B.to(error.dtype).mean(),
        "n_iters": torch.full((), float(result.n_iters), device=error.device),
    }
    if result.plan_BNM is not None:
        parts["alignment"] = result.plan_BNM.detach().diagonal(dim1=-2, dim2=-1).sum(-1).mean()
    return parts
