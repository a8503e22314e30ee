"""Bures–Wasserstein against scipy's matrix roots, POT, closed forms, bounds, and finite differences."""

from __future__ import annotations

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from otkd.ot import exact
from otkd.ot.clouds import Clouds
from otkd.ot.cost import unit
from otkd.ot.gaussian import Config, solve

SIZES = [(13, 17, 5), (17, 13, 5), (7, 9, 30), (5, 40, 12), (40, 5, 12), (12, 12, 12)]
"""More points than coordinates, fewer, and both."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, **options: object) -> Tensor:
    """The squared distance itself, not divided by any cost."""
    return solve(Clouds(x, y, normalize="none"), a, b, Config.model_validate(options)).value_B


def weights(n: int, seed: int) -> Tensor:
    drawn = draw(n, seed=seed).exp()
    drawn[1] = 0
    return drawn / drawn.sum()


def moments(x: Tensor, a: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.average(x, axis=0, weights=a), np.cov(x.T, aweights=a, bias=True)


def psd_root(matrix: np.ndarray) -> np.ndarray:
    """scipy's `sqrtm` has few digits where a covariance is singular."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_equals_the_formula(n: int, m: int, d: int) -> None:
    x, y, a, b = draw(n, d), 1 + 2 * draw(m, d, seed=1), weights(n, 2), weights(m, 3)
    (mean_x, cov_x), (mean_y, cov_y) = moments(x, a), moments(y, b)
    root = psd_root(cov_x)
    cross = np.trace(psd_root(root @ cov_y @ root))
    truth = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y) - 2 * cross
    np.testing.assert_allclose(distance(x, y, a, b), truth, rtol=1e-7)


def test_equals_the_formula_with_scipys_roots() -> None:
    x, y = draw(31, 5), draw(23, 5, seed=1)
    (mean_x, cov_x), (mean_y, cov_y) = moments(x, torch.ones(31)), moments(y, torch.ones(23))
    cross = np.trace(sqrtm(sqrtm(cov_x) @ cov_y @ sqrtm(cov_x)))
    truth = ((mean_x - mean_y) ** 2).sum() + np.trace(cov_x + cov_y) - 2 * cross
    np.testing.assert_allclose(distance(x, y), truth, rtol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_pot(weighted: bool) -> None:
    x, y = draw(31, 5), 1 + 2 * draw(23, 5, seed=1)
    a, b = (weights(31, 2), weights(23, 3)) if weighted else (None, None)
    shaped = (None, None) if a is None or b is None else (a[:, None], b[:, None])
    peer = pot.gaussian.empirical_bures_wasserstein_distance(x, y, reg=0, ws=shaped[0], wt=shaped[1])
    torch.testing.assert_close(distance(x, y, a, b), peer.square()[0])


def test_gradient_equals_pots() -> None:
    x, y = draw(31, 5).requires_grad_(), 1 + 2 * draw(23, 5, seed=1).requires_grad_()
    peer = pot.gaussian.empirical_bures_wasserstein_distance(x, y, reg=0).square()
    for ours, theirs in zip(
        torch.autograd.grad(distance(x, y), (x, y)), torch.autograd.grad(peer, (x, y)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_diagonal_equals_its_closed_form() -> None:
    x, y, a, b = draw(13, 5), 1 + 2 * draw(17, 5, seed=1), weights(13, 2), weights(17, 3)
    (mean_x, cov_x), (mean_y, cov_y) = moments(x, a), moments(y, b)
    deviations = np.sqrt(np.diag(cov_x)) - np.sqrt(np.diag(cov_y))
    truth = ((mean_x - mean_y) ** 2).sum() + (deviations**2).sum()
    np.testing.assert_allclose(distance(x, y, a, b, covariance="diagonal"), truth, rtol=1e-12)


def test_both_covariances_agree_on_the_line() -> None:
    x, y = draw(13, 1), 1 + 2 * draw(17, 1, seed=1)
    torch.testing.assert_close(distance(x, y), distance(x, y, covariance="diagonal"))


def test_a_similarity_has_a_closed_form() -> None:
    """y = t + s x: |t + (s − 1) μ|² + (s − 1)² tr Σ, also where points are fewer than coordinates."""
    x, t = draw(7, 30), draw(30, seed=1)
    truth = (t + 2 * x.mean(0)).square().sum() + 4 * x.var(0, correction=0).sum()
    torch.testing.assert_close(distance(x, t + 3 * x), truth)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 1000))
def test_bounds_and_symmetry(n: int, m: int, d: int, seed: int) -> None:
    """Gelbrich: diagonal ≤ full ≤ the exact cost between the clouds, all at least the gap of the means."""
    x, y = draw(n, d, seed=seed), 1 + draw(m, d, seed=seed + 1)
    a, b = draw(n, seed=seed + 2).softmax(-1), draw(m, seed=seed + 3).softmax(-1)
    full, diagonal = distance(x, y, a, b), distance(x, y, a, b, covariance="diagonal")
    whole = exact.solve(Clouds(x, y, normalize="none").cross, a, b, exact.Config()).value_B
    gap = (a @ x - b @ y).square().sum()
    slack = 1e-9
    assert gap <= diagonal + slack <= full + 2 * slack <= whole + 3 * slack
    torch.testing.assert_close(distance(y, x, b, a), full)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize(("n", "m", "d"), [(13, 17, 5), (9, 4, 5), (5, 7, 12), (7, 4, 12)])
def test_the_gradient_equals_finite_differences(n: int, m: int, d: int, covariance: str) -> None:
    x, y, b = draw(2, n, d).requires_grad_(), 2 * draw(2, m, d, seed=1).requires_grad_(), draw(m).softmax(-1)
    config = Config.model_validate({"covariance": covariance})
    for cost in ("sqeuclidean", "cosine"):

        def value(x: Tensor, y: Tensor, cost: str = cost) -> Tensor:
            return solve(Clouds(x, y, cost, "none"), None, b, config).value_B

        assert torch.autograd.gradcheck(value, (x, y))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(13, 5), (5, 13)])
def test_equal_clouds_are_at_zero_with_no_gradient(n: int, d: int, dtype: torch.dtype, covariance: str) -> None:
    x = draw(n, d).to(dtype).requires_grad_()
    value = distance(x, x.detach().flip(0), covariance=covariance)
    value.backward()
    small = 100 * torch.finfo(dtype).eps
    assert 0 <= value <= small
    assert x.grad is not None
    assert x.grad.abs().max() < small


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("n", [4, 40])
def test_flat_clouds_have_bounded_gradients(n: int, covariance: str) -> None:
    """Dead coordinates, a cloud in one place, a cloud on a line: |∂/∂x_i| ≤ 2 a_i (|x_i − μ| + |y|), never NaN."""
    flat = draw(n, 12).float()
    flat[:, 3:] = 0
    for x in (flat, torch.ones(n, 12), flat[:, :1].expand(n, 12).clone()):
        for y in (flat.flip(0), torch.zeros(7, 12), draw(7, 12, seed=1).float()):
            leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
            value = distance(*leaves, covariance=covariance)
            assert value >= 0
            for gradient in torch.autograd.grad(value, leaves):
                assert gradient.isfinite().all()
                assert gradient.abs().max() < 10


def test_cosine_looks_at_directions_alone() -> None:
    x, y = draw(13, 5), draw(17, 5, seed=1)
    turned = solve(Clouds(3 * x, y * (1 + draw(17, 1, seed=2).abs()), "cosine", "none"), None, None, Config()).value_B
    torch.testing.assert_close(turned, distance(unit(x), unit(y)) / 2)


def test_the_value_is_in_units_of_the_mean_cost() -> None:
    clouds = Clouds(draw(13, 5), draw(17, 5, seed=1))
    mean = clouds.ground(clouds.x_BND, clouds.y_BME).mean()
    torch.testing.assert_close(solve(clouds, None, None, Config()).value_B, distance(clouds.x_BND, clouds.y_BME) / mean)
