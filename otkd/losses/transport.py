"""Optimal transport between the student's and the teacher's representations of a batch.

The loss is the cost of moving the student's cloud of points onto the teacher's. What a point is, `points` says:

- `batch`: each image, its tap flattened; one problem of B × B points. Nothing tells the plan which point belongs to
  which: `alignment`, the share of mass that moves between the two views of the same image, says how far it finds out.
- `spatial`: each cell of a feature map, as the vector of its channels; a problem per image.
- `channel`: each channel, as its picture over space; a problem per image. Any number of channels goes with any other.
- `batch-spatial`: each cell of each image; one problem of B·H·W points.

Disagreements: KD2M takes the exact squared-Wasserstein plan of the penultimate features and needs equal widths
(`solver: exact`, `normalize: none`, `projection: none`); WKD transports between classes or between Gaussians of one
image's cells, by ten unrolled Sinkhorn steps. Here gradients hold the plan fixed (`otkd.ot`), and the cost is divided
by its mean, so that a solver's epsilon and the weight mean the same at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core import plugins
from otkd.core.cards import Layer, ModelCard
from otkd.core.config import StrictModel, TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.seeds import derive
from otkd.losses.base import LossOutput, Probe, Snapshot, TermLoss
from otkd.losses.maps import same_size
from otkd.ot.clouds import Clouds, transport
from otkd.ot.cost import positive
from otkd.ot.result import TransportResult

VECTORS = ("embedding", "logits")
PICTURE = 256
"""The most rows and columns of a plan that is kept as a picture."""


def _width(card: ModelCard, layer: Layer) -> int:
    if layer == "embedding":
        return card.embedding
    if layer == "logits":
        return 0  # the same classes in both networks
    return card.channels[layer if isinstance(layer, int) else card.taps.index(layer)]


class WeightedLayer(StrictModel):
    """One layer of several."""

    layer: Layer
    """Where: as `transport.layer`."""
    weight: PositiveFloat = 1.0
    """Factor of this layer in the term."""


def _one_or_several(value: Any) -> Any:
    """One message for what is no layer at all, in place of one for each thing that a layer may be."""
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(isinstance(item, int | str | Mapping | WeightedLayer) for item in listed):
        raise ValueError("a layer is an index, a name, or a list of these, each of which may be {layer, weight}.")
    return value


class Config(TermConfig):
    """Optimal transport between two clouds of representations."""

    weight: NonNegativeFloat = 10.0
    """Factor of this term in the weighted sum."""
    points: Literal["batch", "spatial", "channel", "batch-spatial"] = "batch"
    """What is transported: images, the cells of each image, its channels, or the cells of all images together."""
    layer: Annotated[
        Layer | Annotated[tuple[Layer | WeightedLayer, ...], Field(min_length=1, strict=False)],
        BeforeValidator(_one_or_several),
    ] = "embedding"
    """Where: `embedding`, `logits`, a feature map by index (0 is the stem) or name; or a list of these.

    An entry of a list may be {layer, weight}; the layers' values are added up.
    """
    side: PositiveInt = 4
    """`spatial` and `batch-spatial`: larger maps are average-pooled to at most so many cells a side."""
    cost: Literal["sqeuclidean", "euclidean", "cosine"] = "sqeuclidean"
    """Cost of moving one point onto another."""
    normalize: Literal["mean", "max", "median", "none"] = "mean"
    """What the costs of a problem are divided by; the divisor carries no gradient."""
    solver: plugins.choice("ot") = "sinkhorn"  # type: ignore[valid-type]
    """How the plan is found: a solver's name, or {name, its options}."""
    warm_start: bool = False
    """`channel` alone, whose points stay the same from step to step: start from the last step's potentials."""
    projection: Literal["auto", "none", "linear", "conv"] = "auto"
    """Learned map of the student to the teacher's width: `conv` is 1×1 on a map, `linear` takes whole flattened points.

    `auto` builds one only where widths differ and the solver minds: `conv` on a map, else `linear`.
    """

    @property
    def layers(self) -> tuple[WeightedLayer, ...]:
        """The layers with their weights."""
        listed: Any = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        return tuple(item if isinstance(item, WeightedLayer) else WeightedLayer(layer=item) for item in listed)

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where a layer is missing, or points, cost, solver and projection do not go together."""
        missing = [
            problem
            for card in (student, teacher)
            if card is not None
            for item in self.layers
            for problem in card.check_layer(item.layer)
        ]
        yield from missing
        if not missing:
            yield from self._check_twice(student)
        if self.cost not in self.solver.costs:
            allowed = ", ".join(self.solver.costs)
            yield Problem("cost", f"{self.solver.name} is not defined for {self.cost}; allowed: {allowed}.")
        if self.warm_start and not (self.points == "channel" and self.solver.warm):
            warm = ", ".join(name for name in plugins.names("ot") if plugins.head("ot", name).Config.warm)
            yield Problem(
                "warm_start",
                "needs points that stay the same from step to step, and a solver that takes a start: "
                f"points: channel, solver: {warm}.",
            )
        if teacher is not None and not missing:
            for item in self.layers:
                yield from self._check_points(item.layer, _width(student, item.layer), _width(teacher, item.layer))

    def _check_twice(self, student: ModelCard) -> Iterator[Problem]:
        """A layer that is listed twice, also once by its index and once by its name."""
        seen: dict[Layer, Layer] = {}
        for item in self.layers:
            name = student.taps[item.layer] if isinstance(item.layer, int) else item.layer
            if name in seen:
                also = "" if seen[name] == item.layer else f", also as {seen[name]}"
                yield Problem("layer", f"{item.layer} is listed twice{also}; give it once, with a weight.")
            seen[name] = item.layer

    def _check_points(self, layer: Layer, width_s: int, width_t: int) -> Iterator[Problem]:
        if layer in VECTORS and self.points != "batch":
            yield Problem("points", f"{self.points} takes feature maps, {layer} is a vector; allowed there: batch.")
        elif layer in VECTORS and self.projection == "conv":
            yield Problem("projection", f"conv takes a feature map, {layer} is a vector; allowed: auto, none, linear.")
        elif self.points != "batch" and self.projection == "linear":
            yield Problem(
                "projection", f"linear takes whole images; with points: {self.points} use conv, auto or none."
            )
        elif (
            self.projection == "none" and width_s != width_t and self.points != "channel" and not self.solver.any_widths
        ):
            yield Problem(
                "projection", f"none, but the student is {width_s} wide there and the teacher {width_t}; use auto."
            )


class Loss(TermLoss):
    """Transport cost from the student's to the teacher's points, equal weights; summed over layers."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("transport goes to a teacher's representations, and there is none")
        self.config = config
        self.projections = nn.ModuleList(
            _projection(config, item.layer, *_taps(config, item.layer, probe.student, probe.teacher))
            for item in config.layers
        )
        self._seed = int(torch.randint(2**31, ()))
        self._step = 0
        self._starts: list[tuple[Tensor, Tensor]] = []

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        results = self._solve(out_s, out_t)
        values = [item.weight * result.value_B.mean() for item, result in zip(self.config.layers, results, strict=True)]
        if self.training:
            self._step += 1
            self._keep(results)
        return LossOutput(torch.stack(values).sum(), self._parts(results, len(batch.target)))

    def snapshot(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> dict[str, Snapshot]:
        """The plan at each layer, for the solvers that have one; see `_picture`."""
        plans = zip(self.config.layers, self._solve(out_s, out_t), strict=True)
        return {
            f"{item.layer}": _picture(self.config.points, result.plan_BNM, batch.target)
            for item, result in plans
            if result.plan_BNM is not None
        }

    def get_extra_state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the projections: the number of steps, the last potentials."""
        return {"step": self._step, "starts": self._starts}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Read it back."""
        self._step, self._starts = state["step"], [tuple(start) for start in state["starts"]]

    def _solve(self, out_s: ModelOutput, out_t: ModelOutput) -> list[TransportResult]:
        config, results = self.config, []
        for index, (item, projection) in enumerate(zip(config.layers, self.projections, strict=True)):
            tap_s, tap_t = _taps(config, item.layer, out_s, out_t)
            points_s, points_t = _points(config.points, projection(tap_s)), _points(config.points, tap_t)
            seed = derive(self._seed, f"{item.layer}", self._step)
            clouds = Clouds(points_s, points_t, config.cost, config.normalize, seed)
            results.append(transport(clouds, None, None, config.solver, self._start(index, points_s)))
        return results

    def _start(self, index: int, points_BND: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self._starts:
            return None
        f_N, g_M = (part.to(points_BND.device).expand(len(points_BND), -1) for part in self._starts[index])
        return f_N, g_M

    def _keep(self, results: list[TransportResult]) -> None:
        """Remember each channel's potentials, averaged over the images."""
        if self.config.warm_start:
            pairs = [result.potentials for result in results if result.potentials is not None]
            self._starts = [(f_BN.mean(0), g_BM.mean(0)) for f_BN, g_BM in pairs]

    def _parts(self, results: list[TransportResult], images: int) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for item, result in zip(self.config.layers, results, strict=True):
            prefix = f"{item.layer}/" if len(results) > 1 else ""
            parts |= {prefix + name: part for name, part in _evidence(self.config.points, result, images).items()}
        return parts


def _taps(config: Config, layer: Layer, out_s: ModelOutput, out_t: ModelOutput) -> tuple[Tensor, Tensor]:
    """Both networks' tensors at `layer`, feature maps of a size that the points can be taken from."""
    tap_s, tap_t = out_s.layer(layer), out_t.layer(layer).detach()
    if tap_s.dim() != 4:
        return tap_s, tap_t
    if config.points in ("batch", "channel"):
        return same_size(tap_s, tap_t)
    return _at_most(tap_s, config.side), _at_most(tap_t, config.side)


def _at_most(map_BCHW: Tensor, side: int) -> Tensor:
    height, width = map_BCHW.shape[-2:]
    if max(height, width) <= side:
        return map_BCHW
    return F.adaptive_avg_pool2d(map_BCHW, (min(height, side), min(width, side)))


def _points(kind: str, tap: Tensor) -> Tensor:
    """Points (…, N, D) of a feature map (B, C, H, W) or of vectors (B, D)."""
    if kind == "batch":
        return tap.flatten(1)
    channels_BCP = tap.flatten(2)
    if kind == "channel":
        return channels_BCP
    return channels_BCP.mT if kind == "spatial" else channels_BCP.mT.flatten(0, 1)


def _projection(config: Config, layer: Layer, tap_s: Tensor, tap_t: Tensor) -> nn.Module:
    width_s, width_t = tap_s.shape[1], tap_t.shape[1]
    for problem in config._check_points(layer, width_s, width_t):
        raise OtkdError(f"transport.{problem}")
    free = config.points == "channel" or config.solver.any_widths or width_s == width_t
    if config.projection == "none" or (config.projection == "auto" and free):
        return nn.Identity()
    if tap_s.dim() == 4 and config.projection != "linear":
        return nn.Conv2d(width_s, width_t, 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(tap_s[0].numel(), tap_t[0].numel()))


def _evidence(kind: str, result: TransportResult, images: int) -> dict[str, Tensor]:
    """What is worth logging of a solution: convergence, and what the plan looks like."""
    error = result.marginal_error_B.detach()
    parts = {
        "marginal_error": error.max(),
        "converged": result.converged_B.to(error.dtype).mean(),
        "n_iters": torch.full((), float(result.n_iters), device=error.device),
    }
    if result.plan_BNM is None:
        return parts
    plan_BNM = result.plan_BNM / positive(result.plan_BNM.sum((-2, -1), keepdim=True))
    parts["plan_entropy"] = -torch.xlogy(plan_BNM, plan_BNM).sum((-2, -1)).mean()
    if kind in ("batch", "batch-spatial"):
        parts["alignment"] = _by_image(plan_BNM, images).diagonal().sum()
    return parts


def _by_image(plan_NM: Tensor, images: int) -> Tensor:
    """Mass (B, B) between images, of a plan between their cells."""
    return plan_NM.unflatten(1, (images, -1)).sum(-1).unflatten(0, (images, -1)).sum(1)


def _picture(kind: str, plan: Tensor, target_B: Tensor) -> Snapshot:
    """A plan to look at: between images ordered by class, else the mean over images between cells or channels."""
    if kind in ("spatial", "channel"):
        unit = "cells" if kind == "spatial" else "channels"
        mean_NM = plan.mean(0)
        kept_NM = _summed(_summed(mean_NM).mT).mT
        about = f"mean plan between the {unit} of an image"
        if kept_NM.shape != mean_NM.shape:
            about += f", {mean_NM.shape[0]} × {mean_NM.shape[1]}, neighbours summed"
        return Snapshot(kept_NM, None, about)
    order = target_B.argsort(stable=True)
    between_BB = _by_image(plan, len(target_B))
    return Snapshot(between_BB[order][:, order], target_B[order], "plan between images, ordered by class")


def _summed(matrix_NM: Tensor) -> Tensor:
    """At most `PICTURE` rows: each the sum of as many neighbours as it takes."""
    rows = len(matrix_NM)
    bin_N = torch.arange(rows, device=matrix_NM.device) // -(-rows // PICTURE)
    return matrix_NM.new_zeros(int(bin_N[-1]) + 1, matrix_NM.shape[1]).index_add_(0, bin_N, matrix_NM)
