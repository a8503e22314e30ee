"""Pairwise costs between two clouds of points, and their normalisation.

Shapes: x (…, N, D) and y (…, M, D) give a cost (…, N, M). All is computed in float32 at least (float64 stays), also
inside autocast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otkd.core.errors import OtkdError
from otkd.core.plugins import unknown
from otkd.ot.precision import full_precision, widen

MATRICES = 4
"""The most matrices of N × M that a solver keeps if it does not say otherwise (`SolverConfig.matrices`)."""
CGROUP = Path("/sys/fs/cgroup/memory.max")
SMALL = 2**28
"""Bytes below which nobody asks how much memory there is."""
GRAM = 2**26
"""Entries of the classes' Gram matrices that are held at a time."""


def sqeuclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Squared Euclidean distances by |x|² + |y|² − 2⟨x, y⟩, about the points' common mean to keep digits."""
    with full_precision(x_BND):
        squared_BNM: Tensor = _Squared.apply(*_pair(x_BND, y_BMD))[0]
    return squared_BNM


def euclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Euclidean distances. Where two points agree to rounding, distance and gradient are 0."""
    with full_precision(x_BND):
        squared_BNM, length_BN, length_BM = _Squared.apply(*_pair(x_BND, y_BMD))
        rounding_BNM = torch.finfo(squared_BNM.dtype).eps * (length_BN[..., :, None] + length_BM[..., None, :])
        apart_BNM = ~(squared_BNM <= rounding_BNM)  # NaN stays NaN
        return torch.where(apart_BNM, squared_BNM, 1).sqrt() * apart_BNM


def cosine(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """One minus the cosine of the angle, from 0 to 2; a zero vector is at 1 from everything and has no gradient."""
    with full_precision(x_BND):
        x, y = _pair(x_BND, y_BMD)
        return 1 - unit(x) @ unit(y).mT


def unit(x_BND: Tensor) -> Tensor:
    """Vectors divided by their length; what is shorter than 1e-12 becomes 0 and passes no gradient."""
    length_BN1 = torch.linalg.vector_norm(x_BND, dim=-1, keepdim=True)
    return x_BND / torch.where(length_BN1 > 1e-12, length_BN1, math.inf)


COSTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sqeuclidean": sqeuclidean,
    "euclidean": euclidean,
    "cosine": cosine,
}

SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda cost_BNM: cost_BNM.mean((-2, -1), keepdim=True),
    "max": lambda cost_BNM: cost_BNM.amax((-2, -1), keepdim=True),
    "median": lambda cost_BNM: cost_BNM.flatten(-2).median(-1).values[..., None, None],
}


def normalized(cost_BNM: Tensor, by: str) -> Tensor:
    """Divide each problem's costs by their detached `mean`, `max` or (lower) `median`; `none` leaves them.

    With it an epsilon means the same at every layer. A cost that is 0 everywhere stays 0.
    """
    if by == "none":
        return cost_BNM
    return cost_BNM / scale_of(cost_BNM, by)


def scale_of(cost_BNM: Tensor, by: str) -> Tensor:
    """The detached `mean`, `max` or (lower) `median` (…, 1, 1) of each problem's costs; 1 where that is 0."""
    if by not in SCALES:
        raise OtkdError(unknown("normalisation", by, [*SCALES, "none"]))
    return positive(SCALES[by](cost_BNM.detach()))


def positive(scale: Tensor) -> Tensor:
    """`scale`, and 1 where it is 0 or subnormal: a divisor. One that is not finite gives NaN, for costs would be 0."""
    return torch.where(scale < torch.finfo(scale.dtype).tiny, 1, scale) + 0 * scale


def classifier_cosine(weight_KD: Tensor) -> Tensor:
    """Cost (K, K) between classes: one minus the cosine between their rows of a linear classifier, from 0 to 2."""
    return cosine(weight_KD, weight_KD).clamp_min(0).fill_diagonal_(0)


def cka_cost(features_KND: Tensor, count_K: Tensor | None = None) -> Tensor:
    """Cost (K, K) between classes: one minus linear CKA of their features (Kornblith et al., ICML 2019), from 0 to 1.

    CKA(i, j) = ⟨Gᵢ, Gⱼ⟩ / (|Gᵢ| |Gⱼ|) with Gᵢ = Xᵢ Xᵢᵀ, the N × N products of class i's centred features. Sample n of
    one class is paired with sample n of the other merely by position. Where two classes have different counts, both are
    cut to what they have in common, the first samples of each, and centred there.

    A class of equal samples has no spread to compare and is at 1 from all others. So is one of less than three: the CKA
    of any two pairs of samples is 1.

    Many samples are cheaper by features, with |Xᵢᵀ Xⱼ|² in place of ⟨Gᵢ, Gⱼ⟩: in time K² N D² / 2, and no memory beyond
    the samples', against K N² (D + K) / 2.

    Args:
        features_KND: samples of each class, in order; rows from the class' count on are not looked at.
        count_K: samples of each class; None where all have N.
    """
    features = widen(features_KND)
    classes, most = features.shape[:2]
    count = torch.full((classes,), most, device=features.device) if count_K is None else count_K
    cka_KK = features.new_zeros(classes, classes)
    with full_precision(features):
        for n in count[count > 2].unique().tolist():
            at_least, exactly = (torch.nonzero(chosen)[:, 0] for chosen in (count >= n, count == n))
            width, few = features.shape[2], len(exactly)
            by = _cka_by_features if few * width**2 < n * (width + few) else _cka_by_samples
            block_RK = by(features[:, :n], at_least, exactly)
            cka_KK[exactly[:, None], at_least] = block_RK
            cka_KK[at_least[:, None], exactly] = block_RK.mT
    return (1 - cka_KK).clamp_min(0).fill_diagonal_(0)


def sharpened(cost_KK: Tensor, sharpness: float) -> Tensor:
    """1 − exp(−κ cost), with which WKD (Lv et al., NeurIPS 2024) stretches small costs between classes."""
    return -torch.expm1(-sharpness * cost_KK)


def _cka_by_samples(features_KND: Tensor, columns_K: Tensor, rows_R: Tensor) -> Tensor:
    """CKA (R, K) of some classes with others. Gram matrices are made `GRAM` entries at a time, a band of rows each.

    They are symmetric: a band begins at its diagonal, and what lies beyond its square counts twice.
    """
    x_KND = features_KND[columns_K]  # a copy
    spread_K = _spread(x_KND)
    x_KND.sub_(x_KND.mean(1, keepdim=True)).div_(spread_K[:, None, None])
    rows_R = torch.searchsorted(columns_K, rows_R)
    classes, samples = x_KND.shape[:2]
    product_RK, square_K = x_KND.new_zeros(len(rows_R), classes), x_KND.new_zeros(classes)
    height = max(1, GRAM // (classes * samples))
    for start in range(0, samples, height):
        gram_KGN = x_KND[:, start : start + height] @ x_KND[:, start:].mT
        gram_KGN[..., height:] *= math.sqrt(2)
        gram_KG = gram_KGN.flatten(1)
        product_RK += gram_KG[rows_R] @ gram_KG.mT
        square_K += torch.linalg.vecdot(gram_KG, gram_KG)
    return product_RK / positive((square_K[rows_R, None] * square_K).sqrt())


def _cka_by_features(features_KND: Tensor, columns_K: Tensor, rows_R: Tensor) -> Tensor:
    """The same, each pair of classes once. One class of a pair need be centred, one at a time, and none is copied."""
    columns, rows = columns_K.tolist(), set(rows_R.tolist())
    spread_K = _spread(features_KND[k] for k in columns)
    product_KK = features_KND.new_zeros(len(columns), len(columns))
    for i, left in enumerate(columns):
        x_ND = (features_KND[left] - features_KND[left].mean(0)).div_(spread_K[i])
        for j, right in enumerate(columns[i:], i):
            if left == right or left in rows or right in rows:
                cross_DD = (x_ND.mT @ features_KND[right]).div_(spread_K[j])
                product_KK[i, j] = product_KK[j, i] = cross_DD.square_().sum()
    square_K = product_KK.diagonal()
    cka_KK = product_KK / positive((square_K[:, None] * square_K).sqrt())
    return cka_KK[torch.searchsorted(columns_K, rows_R)]


def _spread(classes: Iterable[Tensor]) -> Tensor:
    """Length (K) of each class' centred samples (N, D); infinite, which makes 0 of them, where it is mere rounding."""
    norm = torch.linalg.vector_norm
    length_K, spread_K = torch.stack([torch.stack([norm(x_ND), norm(x_ND - x_ND.mean(0))]) for x_ND in classes], 1)
    return spread_K.masked_fill(spread_K <= 8 * torch.finfo(spread_K.dtype).eps * length_K, math.inf)


class _Squared(torch.autograd.Function):
    """Squared distances, and both clouds' squared lengths about their common mean, from which rounding can be told.

    The gradient in x is 2 Σ_j G_ij (x_i − y_j): one matrix product for each cloud that asks for it.
    """

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, m = x_BND.shape[-2], y_BMD.shape[-2]
        centre_B1D = (x_BND.sum(-2, keepdim=True) + y_BMD.sum(-2, keepdim=True)) / (n + m)
        x, y = x_BND - centre_B1D, y_BMD - centre_B1D
        length_BN, length_BM = (torch.linalg.vecdot(part, part) for part in (x, y))
        ctx.save_for_backward(x, y)
        ctx.mark_non_differentiable(length_BN, length_BM)
        inner_BNM = (x @ y.mT).mul_(-2).add_(length_BN[..., :, None]).add_(length_BM[..., None, :])
        return inner_BNM.clamp_min_(0), length_BN, length_BM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNM: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        with full_precision(grad_BNM):
            by_x, by_y = ctx.needs_input_grad
            grad_x = _pull(grad_BNM, x, y) if by_x else None
            grad_y = _pull(grad_BNM.mT, y, x) if by_y else None
        return grad_x, grad_y


def _pull(grad_BNM: Tensor, x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    return (grad_BNM.sum(-1, keepdim=True) * x_BND).sub_(grad_BNM @ y_BMD).mul_(2)


def _pair(x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor]:
    if x_BND.shape[:-2] != y_BMD.shape[:-2] or x_BND.shape[-1] != y_BMD.shape[-1] or x_BND.dim() < 2:
        raise OtkdError(
            f"points of shape {tuple(x_BND.shape)} and {tuple(y_BMD.shape)} cannot be compared: "
            "a cost takes (…, N, D) and (…, M, D) with the same leading dimensions and the same width D"
        )
    check_memory(x_BND, x_BND.shape[:-1].numel() * y_BMD.shape[-2])
    return widen(x_BND), widen(y_BMD)


def check_memory(points: Tensor, entries: int, matrices: int = MATRICES) -> None:
    """Refuse costs of so many `entries` that a solver's `matrices` cannot fit where `points` are.

    Raises:
        OtkdError: with what it takes, what there is, and the way out.
    """
    needed = matrices * entries * max(points.element_size(), 4)
    if needed < SMALL:
        return
    there = _memory(points.device)
    if needed > there:
        raise OtkdError(
            f"costs between points of shape {tuple(points.shape)} and others have {entries:,} entries; a solver keeps "
            f"up to {matrices} such matrices, {needed / 2**30:,.0f} GiB, and this process has "
            f"{there / 2**30:,.0f} GiB on {points.device}. Take fewer points (a smaller batch or transport.side, "
            "another layer) or a solver that makes no matrix: sliced, gaussian."
        )


def _memory(device: torch.device) -> int:
    """Bytes that this process may take on a GPU; on the CPU all that the machine or its control group has."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP.read_text(encoding="utf-8").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical
