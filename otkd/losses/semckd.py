"""SemCKD: cross-layer distillation with semantic calibration (Chen, Mei, Zhang, Wang, Feng & Chen, AAAI 2021).

Each image's rows of the batch's similarity matrices F Fᵀ, F a stage's maps flattened (B, CHW), say what a stage sees
in it. Small networks (linear, ReLU, linear) make of them unit vectors, a query q_i for each of the student's S stages
and a key k_j for each of the teacher's stages; the image's weights are a_ij = softmax_j(⟨q_i, k_j⟩ / `scale`). The
loss is the mean over images and student's stages of Σ_j a_ij · MSE(R_ij(f_i), t_j): R_ij is a projector of 1 × 1, 3 × 3
and 1 × 1 convolutions with batch norm and ReLU between, twice as wide within as the teacher's stage, and the larger map
is average-pooled to the smaller first. All pairs take part, so the numbers of stages may differ.

As in the authors' release, similarities are not normalised, gradients go through the weights, and the small networks
are as wide as a full batch, so that the order of its images matters; they end in a quarter as many numbers. The release
cannot take a smaller batch: here its rows are filled up with zeros. Below 8 images a batch the vectors keep 2 numbers,
as one number of length 1 has no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import BatchNorm2d, same_size, teacher_of
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """All pairs of stages, weighted image by image by learned attention."""

    weight: NonNegativeFloat = 400.0
    """Factor of this term in the weighted sum."""
    scale: PositiveFloat = 1.0
    """What the attention's scores, from -1 to 1, are divided by before the softmax."""


class Loss(TermLoss):
    """Squared distances of all pairs of stages, weighted by attention, mean over images and the student's stages."""

    ordered: bool = True

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.scale, self.batch_size = config.scale, probe.batch_size
        widths_s, widths_t = ([f.shape[1] for f in out.stages] for out in (probe.student, teacher_of("semckd", probe)))
        self.queries, self.keys = (
            nn.ModuleList(_embedding(probe.batch_size) for _ in widths) for widths in (widths_s, widths_t)
        )
        self.projectors = nn.ModuleList(_projector(*pair) for pair in product(widths_s, widths_t))

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        stages_t = [map_t.detach() for map_t in out_t.stages]
        pairs = zip(self.projectors, product(out_s.stages, stages_t), strict=True)
        gaps_BP = torch.stack([_gap(projector, *maps) for projector, maps in pairs], 1)
        with full_precision(out_s.logits):
            weights_BST = self._weights(out_s.stages, stages_t)
            value = (weights_BST * gaps_BP.reshape(weights_BST.shape)).sum(-1).mean()
        return LossOutput(value, {"largest_weight": weights_BST.detach().amax(-1).mean()})

    def _weights(self, stages_s: Iterable[Tensor], stages_t: Iterable[Tensor]) -> Tensor:
        """Attention (B, S, T); over the teacher's stages it sums to 1."""
        queries_BSA, keys_BTA = (
            torch.stack([embed(self._similarity(f)) for embed, f in zip(embeds, maps, strict=True)], 1)
            for embeds, maps in ((self.queries, stages_s), (self.keys, stages_t))
        )
        scores_BST = F.normalize(queries_BSA, dim=-1) @ F.normalize(keys_BTA, dim=-1).mT
        return (scores_BST / self.scale).softmax(-1)

    def _similarity(self, map_BCHW: Tensor) -> Tensor:
        """Products of all images' maps (B, N), N the size of a full batch, zeros where the batch has fewer images."""
        missing = self.batch_size - len(map_BCHW)
        if missing < 0:
            raise OtkdError(f"semckd was built for batches of {self.batch_size} images; got one of {len(map_BCHW)}")
        flat_BD = widen(map_BCHW).flatten(1)
        return F.pad(flat_BD @ flat_BD.mT, (0, missing))


def _gap(projector: nn.Module, map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> Tensor:
    """Mean squared error of each image (B,)."""
    map_s, map_t = same_size(map_s_BCHW, map_t_BDHW)
    return (widen(projector(map_s)) - widen(map_t)).square().flatten(1).mean(1)


def _embedding(batch_size: int) -> nn.Module:
    width = max(batch_size // 4, 2)
    return nn.Sequential(nn.Linear(batch_size, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _projector(width_s: int, width_t: int) -> nn.Module:
    width = 2 * width_t
    return nn.Sequential(
        nn.Conv2d(width_s, width, 1, bias=False),
        BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width_t, 1, bias=False),
    )
