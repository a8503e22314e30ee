"""KD-SVD: distillation of singular vectors (Lee, Kim & Song, ECCV 2018).

Each stage's map, as a matrix for each image, is reduced to its first k right singular vectors v, times the teacher's k
singular values divided by their norm (1 where k = 1). Of the student's first k + 3 vectors, each of the teacher's is
compared with the one of largest |cosine|, its sign turned to the teacher's. With r(v, w)_ij = exp(−(v_i − w_j)² / 8),
L = Σ_l mean_b Σ_ij (r(v_l^s, v_(l−1)^s)_ij − r(v_l^t, v_(l−1)^t)_ij)² over consecutive stages, and over k.
The spatially larger map is average-pooled to the smaller.

The matrix is (C · H) × W in mdistiller, whose vectors lie along the width (`axis: width`, default), and HW × C in
RepDistiller, whose vectors lie along the channels, as many in both networks (`axis: channel`).

Differences from both, where they leave the value or the gradient to chance: the sign of a singular vector is the linear
algebra library's choice; here the teacher's entries add up to 0 or more, which is the usual relation between stages of
maps after a ReLU. The gradient of singular vectors grows without bound where singular values come close; here the
vectors are eigenvectors of the smaller Gram matrix G = XᵀX (or XXᵀ) of trace 1, and first-order perturbation theory,
dv_j = Σ_i v_i ⟨v_i, dG v_j⟩ / (λ_j − λ_i), has δ / (δ² + ε²) in place of 1 / δ, ε = 10⁻⁴.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from otkd.core.cards import ModelCard
from otkd.core.config import TermConfig
from otkd.core.errors import OtkdError, Problem
from otkd.core.output import Batch, ModelOutput
from otkd.core.pairing import same_channels, same_stages
from otkd.losses.base import LossOutput, Probe, TermLoss
from otkd.losses.maps import paired_stages, same_size
from otkd.ot.precision import full_precision, widen


class Config(TermConfig):
    """Singular vectors of consecutive stages."""

    axis: Literal["width", "channel"] = "width"
    """Along what the singular vectors lie; `channel` needs as many channels in both networks."""
    k: PositiveInt = 1
    """Singular vectors of each of the teacher's maps."""

    def check(self, student: ModelCard, teacher: ModelCard | None) -> Iterator[Problem]:
        """A problem where stages cannot be paired, or channels where these are compared."""
        yield from super().check(student, teacher)
        problems = list(same_stages(student, teacher))
        if not problems and self.axis == "channel":
            problems = list(same_channels(student, teacher, first=1))
        yield from problems
        if len(student.taps) < 3:
            yield Problem("", f"compares consecutive stages; the student has {', '.join(student.taps[1:])} alone.")


GAP = 1e-4
"""Below this difference of eigenvalues, as a share of their sum, gradients are damped."""

FAINT = 1e-3
"""Below this share of the matrix's norm a vector has no certain direction, and is shortened."""

EXTRA = 3
"""Vectors of the student beyond k among which those nearest to the teacher's are chosen."""


class Vectors(NamedTuple):
    """The first right singular vectors of a batch of matrices."""

    vectors_BNK: Tensor
    values_BK: Tensor
    """Their singular values, up to one factor."""


class Loss(TermLoss):
    """Squared difference of the relations between consecutive stages' singular vectors, summed over stages."""

    def __init__(self, config: Config, probe: Probe) -> None:
        super().__init__(config, probe)
        self.config = config
        pairs = paired_stages("kdsvd", probe)
        if len(pairs) < 2:
            raise OtkdError("kdsvd compares consecutive stages; there is one alone")
        for pair in pairs:
            matrix_s, matrix_t = self._matrices(*pair)
            if config.axis == "channel" and matrix_s.shape[2] != matrix_t.shape[2]:
                raise OtkdError(
                    f"kdsvd with axis channel needs as many channels in both networks; the student has "
                    f"{matrix_s.shape[2]}, the teacher {matrix_t.shape[2]}. Take axis width"
                )
            most = min(*matrix_s.shape[1:], *matrix_t.shape[1:])
            if config.k > most:
                raise OtkdError(f"kdsvd cannot take {config.k} singular vectors of a stage that has {most}; lower k")

    def forward(self, out_s: ModelOutput, out_t: ModelOutput, batch: Batch) -> LossOutput:
        with full_precision(out_s.logits):
            pairs = zip(out_s.stages, out_t.stages, strict=True)
            stages = [self._vectors(map_s, map_t.detach()) for map_s, map_t in pairs]
            values = [_difference(earlier, later) for earlier, later in pairwise(stages)]
            return LossOutput(torch.stack(values).sum())

    def _vectors(self, map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's vectors (B, N, k) of one stage."""
        matrix_s, matrix_t = self._matrices(map_s_BCHW, map_t_BDHW)
        vectors_t, values_t = _right(matrix_t, self.config.k)
        vectors_t = vectors_t * _sign(vectors_t.sum(1, keepdim=True))
        vectors_s = _aligned(_right(matrix_s, self.config.k + EXTRA).vectors_BNK, vectors_t)
        scale_B1K = F.normalize(values_t, dim=-1)[:, None]
        return vectors_s * scale_B1K, vectors_t * scale_B1K

    def _matrices(self, map_s_BCHW: Tensor, map_t_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        map_s, map_t = same_size(widen(map_s_BCHW), widen(map_t_BDHW))
        if self.config.axis == "width":
            return map_s.flatten(1, 2), map_t.flatten(1, 2)
        return map_s.flatten(2).mT, map_t.flatten(2).mT


def _difference(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> Tensor:
    relation_s, relation_t = (
        torch.exp(-(w_BNK[:, :, None] - v_BMK[:, None]).square() / 8)
        for v_BMK, w_BNK in zip(earlier, later, strict=True)
    )
    return (relation_s - relation_t).square().sum() / len(relation_s)


def _aligned(vectors_s_BNJ: Tensor, vectors_t_BNK: Tensor) -> Tensor:
    """For each of the teacher's vectors the student's nearest, up to sign, with the teacher's sign."""
    cosine_BJK = (vectors_s_BNJ.mT @ vectors_t_BNK).detach()
    nearest_B1K = cosine_BJK.abs().argmax(1, keepdim=True)
    chosen_BNK = vectors_s_BNJ.gather(2, nearest_B1K.expand(-1, vectors_s_BNJ.shape[1], -1))
    return chosen_BNK * _sign(cosine_BJK.gather(1, nearest_B1K))


def _sign(x: Tensor) -> Tensor:
    """1 or −1; 1 for 0."""
    return 1 - 2 * (x < 0).to(x.dtype)


def _right(matrix_BMN: Tensor, count: int) -> Vectors:
    """The first `count` right singular vectors, or all where there are fewer."""
    norm_B = torch.linalg.vector_norm(matrix_BMN.detach(), dim=(1, 2)).clamp_min(1e-12)
    x_BMN = matrix_BMN / norm_B[:, None, None]
    if x_BMN.shape[2] <= x_BMN.shape[1]:
        return _eigenvectors(x_BMN.mT @ x_BMN, count)
    left_BMK, values_BK = _eigenvectors(x_BMN @ x_BMN.mT, count)
    return Vectors(F.normalize(x_BMN.mT @ left_BMK, dim=1, eps=FAINT), values_BK)


def _eigenvectors(gram_BNN: Tensor, count: int) -> Vectors:
    """Eigenvectors of the largest eigenvalues, and these values' roots; only the vectors have a gradient.

    A Gram matrix with NaN, for which `eigh` raises, gives vectors with NaN.
    """
    fixed_BNN = gram_BNN.detach()
    values_BN, vectors_BNN = torch.linalg.eigh(torch.nan_to_num(fixed_BNN, 0.0, 0.0, 0.0))
    values_BN, vectors_BNN = values_BN.flip(-1), vectors_BNN.flip(-1)
    gap_BNK = values_BN[:, None, :count] - values_BN[:, :, None]
    first_BNK = vectors_BNN[:, :, :count]
    change_BNK = vectors_BNN.mT @ (gram_BNN - fixed_BNN) @ first_BNK
    moved_BNK = vectors_BNN @ (change_BNK * gap_BNK / (gap_BNK.square() + GAP**2))
    return Vectors(first_BNK + moved_BNK, values_BN[:, :count].clamp_min(0).sqrt())
