"""Pairwise costs between two clouds of points, and their normalisation.

Shapes: x (…, N, D) and y (…, M, D) give a cost (…, N, M). All is computed in float32 at least (float64 stays), also
inside autocast.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.core.plugins import unknown
from otkd.ot.precision import full_precision, widen

MATRICES = 4
"""The most matrices of N × M that any solver keeps."""
SMALL = 2**28
"""Bytes below which nobody asks how much memory there is."""
GRAM = 2**26
"""Entries of the classes' Gram matrices that are held at a time."""


def sqeuclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Squared Euclidean distances by |x|² + |y|² − 2⟨x, y⟩, about the points' common mean to keep digits."""
    return _squared_distances(x_BND, y_BMD)[0]


def euclidean(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """Euclidean distances. Where two points agree to rounding, distance and gradient are 0."""
    squared_BNM, scale_BNM = _squared_distances(x_BND, y_BMD)
    apart_BNM = ~(squared_BNM <= torch.finfo(squared_BNM.dtype).eps * scale_BNM)  # NaN stays NaN
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
    """`scale`, and 1 where it is 0: a divisor."""
    return torch.where(scale > 0, scale, 1)


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
            block = _linear_cka(features[at_least, :n], torch.searchsorted(at_least, exactly))
            cka_KK[exactly[:, None], at_least] = block
            cka_KK[at_least[:, None], exactly] = block.mT
    return (1 - cka_KK).clamp_min(0).fill_diagonal_(0)


def sharpened(cost_KK: Tensor, sharpness: float) -> Tensor:
    """1 − exp(−κ cost), with which WKD (Lv et al., NeurIPS 2024) stretches small costs between classes."""
    return -torch.expm1(-sharpness * cost_KK)


def _linear_cka(features_KND: Tensor, rows_R: Tensor) -> Tensor:
    """CKA (R, K) of some classes with all. The Gram matrices are made `GRAM` entries at a time, a band of rows each."""
    x_KND = features_KND - features_KND.mean(1, keepdim=True)
    x_KND = x_KND / positive(torch.linalg.vector_norm(x_KND, dim=(1, 2), keepdim=True))
    classes, samples = x_KND.shape[:2]
    product_RK, square_K = x_KND.new_zeros(len(rows_R), classes), x_KND.new_zeros(classes)
    for band_KND in x_KND.split(max(1, GRAM // (classes * samples)), 1):
        gram_KG = (band_KND @ x_KND.mT).flatten(1)
        product_RK += gram_KG[rows_R] @ gram_KG.mT
        square_K += gram_KG.square().sum(-1)
    return product_RK / positive((square_K[rows_R, None] * square_K).sqrt())


def _squared_distances(x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances, and |x|² + |y|², whose rounding they inherit."""
    with full_precision(x_BND):
        x, y = _pair(x_BND, y_BMD)
        centre = torch.cat([x, y], -2).mean(-2, keepdim=True).detach()
        x, y = x - centre, y - centre
        scale_BNM = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
        return (scale_BNM - 2 * (x @ y.mT)).clamp_min(0), scale_BNM.detach()


def _pair(x_BND: Tensor, y_BMD: Tensor) -> tuple[Tensor, Tensor]:
    if x_BND.shape[:-2] != y_BMD.shape[:-2] or x_BND.shape[-1] != y_BMD.shape[-1] or x_BND.dim() < 2:
        raise OtkdError(
            f"points of shape {tuple(x_BND.shape)} and {tuple(y_BMD.shape)} cannot be compared: "
            "a cost takes (…, N, D) and (…, M, D) with the same leading dimensions and the same width D"
        )
    check_memory(x_BND, x_BND.shape[:-1].numel() * y_BMD.shape[-2])
    return widen(x_BND), widen(y_BMD)


def check_memory(points: Tensor, entries: int) -> None:
    """Refuse costs of so many `entries` that a solver's matrices cannot fit where `points` are.

    Raises:
        OtkdError: with what it takes, what there is, and the way out.
    """
    needed = MATRICES * entries * max(points.element_size(), 4)
    if needed < SMALL:
        return
    if points.is_cuda:
        there = torch.cuda.mem_get_info(points.device)[1]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise OtkdError(
            f"costs between points of shape {tuple(points.shape)} and others have {entries:,} entries; a solver keeps "
            f"up to {MATRICES} such matrices, {needed / 2**30:,.0f} GiB, and {points.device} has "
            f"{there / 2**30:,.0f} GiB. Take fewer points (a smaller batch or transport.side, another layer) or a "
            "solver that makes no matrix: sliced, gaussian."
        )
