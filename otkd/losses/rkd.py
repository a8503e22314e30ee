"""RKD: relational knowledge distillation (Park, Kim, Lu & Cho, CVPR 2019).

Distances: D_ij = ‖h_i − h_j‖ over the mean of all pairs i ≠ j.
Angles: Ψ_ijk = ⟨e_ij, e_ik⟩ with e_ij = (h_j − h_i) / ‖h_j − h_i‖.
The loss is `distance_weight` · Huber(D_s, D_t) + `angle_weight` · Huber(Ψ_s, Ψ_t), each a mean over all B² or B³
entries, the diagonal included. Weights of 25 and 50, on the embeddings, are RepDistiller's and mdistiller's;
torchdistill takes 1 and 2, on the last stage. Images nearer to each other than 1e-6 have no direction between them.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from otkd.core.cards import Layer
from otkd.core.config import TermConfig
from otkd.core.output import Batch, ModelOutput
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import teacher_of
from otkd.losses.relations import unit
from otkd.ot.precision import full_precision, widen

NEAREST = 1e-6


class Config(TermConfig):
    """Distances and angles between the images of a batch."""

    distance_weight: NonNegativeFloat = 25.0
    """Factor of the distances within the term."""
    angle_weight: NonNegativeFloat = 50.0
    """Factor of the angles within the term."""
    layer: Layer = "embedding"
    """What is compared: a vector, or a feature map (index or name), which is flattened. Memory grows with B² times its
    size."""


class Loss(TermLoss):
    """Huber distance between the two networks' relations of two and of three images."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        teacher_of("rkd", probe)
        self.config = config

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        config = self.config
        with full_precision(out_s.logits):
            gap_s, gap_t = _gaps(out_s.layer(config.layer)), _gaps(out_t.layer(config.layer).detach())
            distance = F.smooth_l1_loss(_distances(gap_s), _distances(gap_t))
            angle = F.smooth_l1_loss(_angles(gap_s), _angles(gap_t))
            value = config.distance_weight * distance + config.angle_weight * angle
        return LossOutput(value, parts={"distance": distance.detach(), "angle": angle.detach()})


def _gaps(x: Tensor) -> Tensor:
    """Differences (B, B, D): from image i to image j."""
    x_BD = widen(x).flatten(1)
    return x_BD[None] - x_BD[:, None]


def _distances(gap_BBD: Tensor) -> Tensor:
    """Lengths (B, B) in units of their mean, 0 on the diagonal."""
    images = len(gap_BBD)
    itself_BB = torch.eye(images, dtype=torch.bool, device=gap_BBD.device)
    length_BB = gap_BBD.square().sum(-1).clamp_min(NEAREST**2).sqrt().masked_fill(itself_BB, 0)
    return length_BB / (length_BB.sum() / max(images * (images - 1), 1)).clamp_min(NEAREST)


def _angles(gap_BBD: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at image i between images j and k."""
    direction_BBD = unit(gap_BBD, NEAREST)
    return direction_BBD @ direction_BBD.mT
