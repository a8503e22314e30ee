"""WKD-F: Gaussians of a feature map's cells (Lv, Yang & Li, NeurIPS 2024, "Wasserstein Distance Rivals
Kullback-Leibler Divergence for Knowledge Distillation", Sec. 3.2).

Each image's map is cut into g × g cells. The positions of a cell are samples of a Gaussian with a diagonal covariance,
and between a student's and a teacher's cell stands
`mean_weight` · ‖μ_s − μ_t‖² + ‖σ_s − σ_t‖², which is W₂² of the two Gaussians where `mean_weight` is 1.
It is summed over channels, and averaged over cells and images. The student's map first goes through a 1 × 1
convolution, batch norm and ReLU to the teacher's channels.

As in the authors' release, σ is the root of the unbiased variance plus 1e-5, and cells are cut as adaptive pooling cuts
them. Disagreements of the release:
- it brings the student's map to the teacher's size first, where they differ (by a transposed convolution for WRN-40-2 →
  ShuffleV1). A cell's mean and deviation do not ask how many positions it has, so here each map is cut as it is;
- on ImageNet its projector is a bottleneck of 1 × 1, 3 × 3 and 1 × 1 convolutions;
- a cell of one position has no unbiased variance and gives NaN there; here its variance is 0;
- a ReLU cannot match a teacher whose map is signed, such as a wide ResNet's: `relu: false`;
- the weight falls to 0 along a cosine, on CIFAR-100 from epoch 150; here it is constant.

Defaults are those of resnet32x4 → resnet8x4 on CIFAR-100. WRN-40-2 → ShuffleV1: weight 0.3, mean_weight 3, grid 4.
ImageNet: mean_weight 2, grid 4, weight 0.02 for ResNet34 → ResNet18, 0.005 for ResNet50 → MobileNetV1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from otkd.core.cards import Layer, ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.ot.precision import full_precision, widen

SMOOTHING = 1e-5
"""Added to a variance under its root, as the authors do."""


class Config(TermConfig):
    """Wasserstein distance between Gaussians of the cells of two feature maps."""

    weight: NonNegativeFloat = 0.08
    """Factor of this term in the weighted sum."""
    mean_weight: NonNegativeFloat = 4.0
    """Factor of the means' distance against that of the deviations; 1 is the Wasserstein distance."""
    grid: PositiveInt = 1
    """Cells on each side of a map."""
    layer: Layer | None = None
    """Feature map of both networks, an index (0 is the stem) or a name; none is the last of each."""
    relu: bool = True
    """End the student's projection in a ReLU; off for teachers whose maps are signed."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where the layer is missing or is a vector."""
        yield from super().check(student, teacher)
        if self.layer in ("embedding", "logits"):
            yield Problem(
                "layer",
                f"cells are cut from a feature map, {self.layer} is a vector; there is {', '.join(student.taps)}.",
            )


class Loss(TermLoss):
    """Distance of the cells' means and deviations, summed over channels, mean over cells and images."""

    cells_s_PG: Tensor
    cells_t_PG: Tensor

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        if probe.teacher is None:
            raise OtkdError("wkd_feature compares with a teacher's feature map, and there is none")
        self.config = config
        maps = [_map(out, config.layer) for out in (probe.student, probe.teacher)]
        for whose, map_BCHW in zip(("student", "teacher"), maps, strict=True):
            _check_grid(whose, map_BCHW, config.grid)
            cells_PG = cells(map_BCHW.shape[2], map_BCHW.shape[3], config.grid)
            self.register_buffer(f"cells_{whose[0]}_PG", cells_PG, persistent=False)
        channels_s, channels_t = (map_BCHW.shape[1] for map_BCHW in maps)
        layers = [nn.Conv2d(channels_s, channels_t, 1, bias=False), nn.BatchNorm2d(channels_t)]
        self.projector = nn.Sequential(*layers, nn.ReLU()) if config.relu else nn.Sequential(*layers)

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        map_s_BCHW = self.projector(_map(out_s, self.config.layer))
        map_t_BCHW = _map(out_t, self.config.layer).detach()
        with full_precision(map_s_BCHW):
            mean_s_BCG, std_s_BCG = cell_gaussians(widen(map_s_BCHW), self.cells_s_PG)
            mean_t_BCG, std_t_BCG = cell_gaussians(widen(map_t_BCHW), self.cells_t_PG)
            mean = (mean_s_BCG - mean_t_BCG).square().sum(1).mean()
            std = (std_s_BCG - std_t_BCG).square().sum(1).mean()
        return LossOutput(self.config.mean_weight * mean + std, {"mean": mean.detach(), "std": std.detach()})


def cell_gaussians(map_BCHW: Tensor, cells_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and smoothed deviation (B, C, G) of the positions in each of the G cells; see `cells`."""
    map_BCP = map_BCHW.flatten(2)
    centre_BC1 = map_BCP.detach().mean(2, keepdim=True)  # a shift that keeps the variances' digits
    count_G = cells_PG.sum(0)
    shifted_BCP = map_BCP - centre_BC1
    mean_BCG, square_BCG = (part_BCP @ cells_PG / count_G for part_BCP in (shifted_BCP, shifted_BCP.square()))
    variance_BCG = (square_BCG - mean_BCG.square()).clamp_min(0) * (count_G / (count_G - 1).clamp_min(1))
    return mean_BCG + centre_BC1, (variance_BCG + SMOOTHING).sqrt()


def cells(height: int, width: int, grid: int) -> Tensor:
    """Which of the positions (H·W) lie in which of the g² cells, 1 or 0, as adaptive average pooling cuts them."""
    return torch.kron(_intervals(height, grid), _intervals(width, grid)).mT.contiguous()


def _intervals(size: int, grid: int) -> Tensor:
    """Of (g, size): interval i goes from ⌊i size / g⌋ to ⌈(i + 1) size / g⌉."""
    inside_GP = torch.zeros(grid, size)
    for i in range(grid):
        inside_GP[i, i * size // grid : -(-(i + 1) * size // grid)] = 1
    return inside_GP


def _map(out: ModelOutput, layer: Layer | None) -> Tensor:
    return out.features[-1] if layer is None else out.layer(layer)


def _check_grid(whose: str, map_BCHW: Tensor, grid: int) -> None:
    if map_BCHW.dim() != 4:
        raise OtkdError(f"cells are cut from a feature map (B, C, H, W); got {tuple(map_BCHW.shape)}")
    height, width = map_BCHW.shape[2:]
    if grid > min(height, width):
        raise OtkdError(
            f"wkd_feature.grid: {grid} × {grid} cells cannot be cut from the {whose}'s map of {height} × {width}; "
            "take a smaller grid or an earlier layer"
        )
