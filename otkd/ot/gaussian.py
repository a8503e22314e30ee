"""Bures–Wasserstein: squared transport distance between Gaussians fitted to both clouds (Dowson & Landau, 1982).

|μx − μy|² + tr Σx + tr Σy − 2 tr (Σx^½ Σy Σx^½)^½ with weighted means and covariances (divided by the mass 1, not by
n − 1). It is a lower bound of the squared Wasserstein distance between the clouds themselves (Gelbrich, 1990), and
needs no pairs of points. `diagonal` drops the covariances between coordinates: |μx − μy|² + |σx − σy|². For `cosine`
the points are put on the sphere and the value is halved, as 1 − cos = |x − y|² / 2 there. The value is divided by
`Clouds.scale`.

No covariance is formed, and none has to be regular. With the centred points as rows, each times the root of its
weight, Σx = XᵀX and Σy = YᵀY, so the last trace is the nuclear norm of X Yᵀ, an N × M matrix. A cloud of more points
than coordinates is first reduced to the triangular factor of X = QR. So the singular values of a matrix with
min(N, D) × min(M, D) entries are found, and 64 points of 2048 coordinates are cheap.

The gradient takes the singular vectors U, V as constants (the envelope theorem): that of ‖XYᵀ‖ is U Vᵀ Y in X. It is
exact where XYᵀ has all the rank that centred points can have, min(N − 1, M − 1, D), and finite everywhere: elsewhere
singular values that are 0 to rounding are left out, which is the subgradient of least norm. On CUDA the singular value
decomposition waits for the device.

Against POT: `ot.gaussian.bures_wasserstein_distance` is the square root of the value for `sqeuclidean`, not normalised;
`empirical_bures_wasserstein_distance` also adds `reg` to both covariances.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from otkd.core.config import SolverConfig
from otkd.ot.clouds import Clouds
from otkd.ot.cost import unit
from otkd.ot.points import read
from otkd.ot.precision import full_precision
from otkd.ot.result import TransportResult


class Config(SolverConfig):
    """Transport between the clouds' Gaussian fits."""

    takes = "points"
    costs = ("sqeuclidean", "cosine")
    waits = True
    matrices = 0

    name: str = "gaussian"
    """The plug-in's file name without `.py`."""
    covariance: Literal["full", "diagonal"] = "full"
    """What is fitted beside the mean: all of the covariance, or the variance of each coordinate."""


def solve(clouds: Clouds, a_BN: Tensor | None, b_BM: Tensor | None, config: Config) -> TransportResult:
    """The squared distance between Gaussians for each leading index; see `TransportResult`.

    A cloud that is not finite gives a value that is not finite, and is not converged.

    Raises:
        OtkdError: see `otkd.ot.points.read`.
    """
    with full_precision(clouds.x_BND):
        x_BND, y_BMD, a_BN, b_BM = read(clouds, a_BN, b_BM)
        if clouds.cost == "cosine":
            x_BND, y_BMD = unit(x_BND), unit(y_BMD)
        (mean_x_BD, rows_x_BND), (mean_y_BD, rows_y_BMD) = _centred(x_BND, a_BN), _centred(y_BMD, b_BM)
        spread = _bures if config.covariance == "full" else _diagonal
        value_B = (mean_x_BD - mean_y_BD).square().sum(-1) + spread(rows_x_BND, rows_y_BMD)
        value_B = value_B * (0.5 if clouds.cost == "cosine" else 1.0)
        value = value_B.reshape(clouds.x_BND.shape[:-2]) / clouds.scale[..., 0, 0]
    return TransportResult(value, None, None, 0, torch.zeros_like(value.detach()), value.detach().isfinite())


def _centred(x_BND: Tensor, a_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, D), and rows (B, N, D) whose products add up to the covariance."""
    mean_B1D = a_BN[:, None, :] @ x_BND
    return mean_B1D[:, 0], a_BN.sqrt()[..., None] * (x_BND - mean_B1D)


def _diagonal(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """|σx − σy|²; the gradient of a deviation that is 0 is 0."""
    deviations = torch.linalg.vector_norm(x_BND, dim=-2) - torch.linalg.vector_norm(y_BMD, dim=-2)
    return deviations.square().sum(-1)


def _bures(x_BND: Tensor, y_BMD: Tensor) -> Tensor:
    """|X|² + |Y|² − 2 ‖XYᵀ‖, at least 0 also after rounding."""
    singular = _singular(x_BND.detach(), y_BMD.detach())
    nuclear_B = _dot(x_BND, _nearest(x_BND.detach(), singular))
    if y_BMD.requires_grad:
        nuclear_B = nuclear_B + _dot(y_BMD - y_BMD.detach(), _nearest(y_BMD.detach(), singular.swapped()))
    value_B = _dot(x_BND, x_BND) + _dot(y_BMD, y_BMD) - 2 * nuclear_B
    return value_B + (value_B.clamp_min(0) - value_B).detach()


class _Singular(NamedTuple):
    """X Yᵀ = U S Vᵀ, with the reduced clouds in the places of X and Y."""

    x_BKD: Tensor
    y_BLD: Tensor
    u_BKR: Tensor
    v_BLR: Tensor
    inverse_BR: Tensor
    """1 / S, and 0 where S is 0 to rounding."""

    def swapped(self) -> _Singular:
        return _Singular(self.y_BLD, self.x_BKD, self.v_BLR, self.u_BKR, self.inverse_BR)


def _singular(x_BND: Tensor, y_BMD: Tensor) -> _Singular:
    x_BKD, y_BLD = _reduced(x_BND), _reduced(y_BMD)
    product_BKL = x_BKD @ y_BLD.mT
    finite_B11 = product_BKL.isfinite().all(-1).all(-1)[:, None, None]  # the decomposition raises on others
    u_BKR, s_BR, vt_BRL = torch.linalg.svd(torch.where(finite_B11, product_BKL, 0), full_matrices=False)
    rounding = torch.finfo(s_BR.dtype).eps * max(product_BKL.shape[-2:])
    counts_BR = s_BR > rounding * s_BR[:, :1]
    return _Singular(x_BKD, y_BLD, u_BKR * counts_BR[:, None], vt_BRL.mT, counts_BR / torch.where(counts_BR, s_BR, 1))


def _nearest(x_BND: Tensor, singular: _Singular) -> Tensor:
    """U Vᵀ Y, the rotation of Y nearest to X: the gradient of the nuclear norm in X.

    Where X was reduced, U has to be lifted to all points, U = X Yᵀ V / S: then U Vᵀ Y = X A with a symmetric A, the
    linear map that carries one Gaussian to the other.
    """
    _, y_BLD, u_BKR, v_BLR, inverse_BR = singular
    turned_BRD = v_BLR.mT @ y_BLD
    if x_BND.shape[-2] <= x_BND.shape[-1]:
        return u_BKR @ turned_BRD
    return x_BND @ (turned_BRD.mT @ (inverse_BR[..., None] * turned_BRD))


def _reduced(x_BND: Tensor) -> Tensor:
    """R of X = QR where that has fewer rows than X, else X: the products with others keep their singular values."""
    return torch.linalg.qr(x_BND, mode="r").R if x_BND.shape[-2] > x_BND.shape[-1] else x_BND


def _dot(x_BND: Tensor, y_BND: Tensor) -> Tensor:
    return (x_BND * y_BND).sum((-2, -1))
