"""Sliced Wasserstein against POT, closed forms on the line, bounds, and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch import Tensor

from otkd.ot import exact
from otkd.ot.clouds import Clouds
from otkd.ot.cost import unit
from otkd.ot.sliced import Config, _directions, solve

POWERS = {"sqeuclidean": 2, "euclidean": 1, "cosine": 2}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(x: Tensor, y: Tensor, cost: str = "sqeuclidean", normalize: str = "none", seed: int = 0) -> Clouds:
    return Clouds(x, y, cost, normalize, seed)


def weights(n: int, seed: int) -> Tensor:
    """Of very different size, the first and one more zero."""
    drawn = (2 * draw(n, seed=seed)).exp()
    drawn[[0, n // 2]] = 0
    return drawn / drawn.sum()


@pytest.mark.parametrize("cost", sorted(POWERS))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(13, 17), (17, 13), (12, 18), (15, 15), (1, 5)])
def test_equals_pot_along_the_same_directions(cost: str, weighted: bool, sizes: tuple[int, int]) -> None:
    n, m = sizes
    x, y = draw(n, 5), 0.5 + draw(m, 5, seed=1)
    a, b = (weights(n, 2), weights(m, 3)) if weighted and n > 1 else (None, None)
    both = clouds(x, y, cost)
    directions = _directions(both, 64, x).T
    points = (unit(x), unit(y)) if cost == "cosine" else (x, y)
    power = POWERS[cost]
    peer = pot.sliced_wasserstein_distance(*points, a, b, p=power, projections=directions) ** power
    peer = peer / 2 if cost == "cosine" else peer
    torch.testing.assert_close(solve(both, a, b, Config()).value_B, peer)


def test_equals_scipy_on_the_line() -> None:
    x, y, a, b = draw(13, 1), draw(17, 1, seed=1), weights(13, 2), weights(17, 3)
    truth = wasserstein_distance(x[:, 0], y[:, 0], a, b)
    np.testing.assert_allclose(solve(clouds(x, y, "euclidean"), a, b, Config()).value_B, truth, rtol=1e-12)


def test_a_translation_costs_what_the_directions_see_of_it() -> None:
    """W_2² = (θ·t)² along each θ; the best direction is that of t and sees all of it, after one step of ascent."""
    x, t = draw(13, 5), draw(5, seed=1)
    both = clouds(x, x + t)
    seen = (_directions(both, 64, x) @ t).square().mean()
    torch.testing.assert_close(solve(both, None, None, Config()).value_B, seen)
    torch.testing.assert_close(solve(both, None, None, Config(mode="max", steps=1)).value_B, t.square().sum())


def test_approaches_the_closed_form_for_gaussians() -> None:
    """Between N(0, I) and N(t, s² I) each direction has (θ·t)² + (1 − s)², whose mean is |t|²/D + (1 − s)²."""
    t = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    both = clouds(draw(4000, 4), t + 3 * draw(4000, 4, seed=1))
    value = solve(both, None, None, Config(projections=400)).value_B
    torch.testing.assert_close(value, t.square().sum() / 4 + 4, rtol=0.05, atol=0)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000), st.booleans(),
    st.sampled_from(sorted(POWERS)),
)  # fmt: skip
def test_is_between_zero_and_the_exact_cost(n: int, m: int, d: int, seed: int, weighted: bool, cost: str) -> None:
    both = clouds(draw(n, d, seed=seed), draw(m, d, seed=seed + 1), cost)
    a, b = (draw(n, seed=seed).softmax(-1), draw(m, seed=seed + 2).softmax(-1)) if weighted else (None, None)
    whole = exact.solve(both.cross, a, b, exact.Config()).value_B
    mean = solve(both, a, b, Config(projections=8)).value_B
    largest = solve(both, a, b, Config(projections=8, mode="max")).value_B
    assert 0 <= mean <= largest * (1 + 1e-12)
    assert largest <= whole * (1 + 1e-9) + 1e-12


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_given_equal_weights_change_nothing(n: int, m: int, seed: int) -> None:
    both = clouds(draw(2, n, 3, seed=seed), draw(2, m, 3, seed=seed + 1))
    equal = torch.full((n,), 1 / n), torch.full((m,), 1 / m)
    torch.testing.assert_close(solve(both, *equal, Config()).value_B, solve(both, None, None, Config()).value_B)


@pytest.mark.parametrize("cost", sorted(POWERS))
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_max_comes_near_the_best_of_all_directions_of_the_plane(cost: str, seed: int) -> None:
    """Truth: POT with every tenth of a degree. A local maximum need not be the best."""
    x, y, a, b = draw(13, 2, seed=seed), 1 + draw(17, 2, seed=seed + 1), weights(13, 2), weights(17, 3)
    angle = torch.arange(1800, dtype=torch.float64) * torch.pi / 1800
    points = (unit(x), unit(y)) if cost == "cosine" else (x, y)
    directions = torch.stack([angle.cos(), angle.sin()])
    truth = pot.max_sliced_wasserstein_distance(*points, a, b, p=POWERS[cost], projections=directions) ** POWERS[cost]
    truth = truth / 2 if cost == "cosine" else truth
    value = solve(clouds(x, y, cost), a, b, Config(mode="max", projections=16)).value_B
    assert 0.95 * truth <= value <= (1 + 1e-4) * truth


def test_ascent_never_loses_and_goes_far_in_many_dimensions() -> None:
    x, y = draw(3, 13, 50), draw(3, 17, 50, seed=1)
    x[..., 7] *= 5
    values = [solve(clouds(x, y), None, None, Config(mode="max", steps=steps)).value_B for steps in (0, 1, 5, 20)]
    assert all((later >= earlier).all() for earlier, later in itertools.pairwise(values))
    assert (values[-1] > 2 * values[0]).all()
    mean = solve(clouds(x, y), None, None, Config())
    assert (values[0] >= mean.value_B).all()
    assert mean.n_iters == 0


@pytest.mark.parametrize("cost", sorted(POWERS))
@pytest.mark.parametrize("sizes", [(7, 7), (5, 7)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_equals_finite_differences(cost: str, sizes: tuple[int, int], weighted: bool) -> None:
    x, y = draw(2, sizes[0], 3).requires_grad_(), draw(2, sizes[1], 3, seed=1).requires_grad_()
    a, b = (weights(n, 2) if weighted else None for n in sizes)
    config = Config(projections=6)
    assert torch.autograd.gradcheck(lambda *both: solve(clouds(*both, cost), a, b, config).value_B, (x, y))


def test_the_gradient_of_max_equals_finite_differences() -> None:
    """At a maximum the change of the direction does not matter: truth is differences of the maximum itself."""
    x, y = draw(5, 3).requires_grad_(), 2 + draw(7, 3, seed=1)
    config = Config(mode="max", steps=60, projections=8)
    assert torch.autograd.gradcheck(lambda x: solve(clouds(x, y), None, None, config).value_B, x, atol=1e-5)


def test_the_value_is_in_units_of_the_mean_cost() -> None:
    both = clouds(draw(13, 4), draw(17, 4, seed=1), "euclidean", "mean")
    plain = solve(clouds(both.x_BND, both.y_BME, "euclidean"), None, None, Config()).value_B
    mean = both.ground(both.x_BND, both.y_BME).mean()
    torch.testing.assert_close(solve(both, None, None, Config()).value_B, plain / mean)


def test_the_seed_alone_decides_the_directions() -> None:
    x, y = draw(13, 4), draw(17, 4, seed=1)
    first, again, other = (solve(clouds(x, y, seed=seed), None, None, Config()).value_B for seed in (1, 1, 2))
    single = solve(clouds(x.float(), y.float(), seed=1), None, None, Config()).value_B
    assert first == again != other
    torch.testing.assert_close(single.double(), first, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_point_that_is_not_finite_shows_even_without_weight(mode: str) -> None:
    x = draw(13, 4)
    x[0, 1] = torch.nan
    result = solve(clouds(x, draw(17, 4)), weights(13, 2), None, Config.model_validate({"mode": mode}))
    assert not result.value_B.isfinite()
    assert not result.converged_B
