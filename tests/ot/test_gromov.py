"""Gromov–Wasserstein against POT, the quadruple sum, all permutations, isometries, bounds, and finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.ot import exact
from otkd.ot.clouds import Clouds
from otkd.ot.gromov import Config, solve
from otkd.ot.result import TransportResult

COSTS = ["sqeuclidean", "euclidean", "cosine"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gromov(x: Tensor, y: Tensor, cost: str = "sqeuclidean", a: Any = None, b: Any = None, **options: Any) -> Any:
    result = solve(Clouds(x, y, cost), a, b, Config.model_validate(options))
    assert isinstance(result, TransportResult)
    return result


def inner(x: Tensor, cost: str = "sqeuclidean") -> Tensor:
    """Costs inside a cloud, of mean 1."""
    made = Clouds(x, x, cost, "none").cross
    mean = made.mean((-2, -1), keepdim=True)
    return made / torch.where(mean > 0, mean, 1)


def quadruple_sum(c_x: Tensor, c_y: Tensor, plan: Tensor) -> Tensor:
    gap = c_x[:, None, :, None] - c_y[None, :, None, :]
    return torch.einsum("ijkl,ij,kl->", gap.square(), plan, plan)


def rotated(x: Tensor) -> Tensor:
    """A rotation or reflection into a space of more dimensions, moved and twice as large, in another order."""
    basis = torch.linalg.qr(draw(x.shape[-1] + 2, x.shape[-1], seed=9)).Q
    return (2 * x @ basis.T + 3)[..., torch.randperm(x.shape[-2], generator=torch.Generator().manual_seed(3)), :]


@pytest.mark.parametrize("kind", ["exact", "entropic"])
@pytest.mark.parametrize("cost", COSTS)
def test_the_value_is_the_quadruple_sum_at_the_plan(cost: str, kind: str) -> None:
    x, y, a, b = draw(7, 3), draw(9, 4, seed=1), draw(7, seed=2).softmax(-1), draw(9, seed=3).softmax(-1)
    result = gromov(x, y, cost, a, b, kind=kind)
    assert result.converged_B
    torch.testing.assert_close(result.value_B, quadruple_sum(inner(x, cost), inner(y, cost), result.plan_BNM))
    torch.testing.assert_close(result.plan_BNM.sum(-1), a)
    torch.testing.assert_close(result.plan_BNM.sum(-2), b)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(5))
def test_is_not_above_pot_and_pot_cannot_improve_it(cost: str, seed: int) -> None:
    """POT searches from the product alone; from our plan, its line search and ours agree that it is stationary."""
    x, y = draw(13, 3, seed=seed), draw(17, 5, seed=seed + 50)
    a, b = draw(13, seed=2).softmax(-1), draw(17, seed=3).softmax(-1)
    arrays = [part.numpy() for part in (inner(x, cost), inner(y, cost), a, b)]
    result = gromov(x, y, cost, a, b)
    _, from_product = pot.gromov.gromov_wasserstein(*arrays, log=True)
    _, from_ours = pot.gromov.gromov_wasserstein(*arrays, G0=result.plan_BNM.numpy(), log=True)
    assert result.value_B <= from_product["gw_dist"] * (1 + 1e-9)
    np.testing.assert_allclose(result.value_B, from_ours["gw_dist"], rtol=1e-6)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_entropic_plan_is_stationary_for_pot(cost: str, epsilon: float) -> None:
    """From our plan POT's projected gradient stays where it is."""
    x, y = draw(13, 3), draw(17, 5, seed=1)
    a, b = draw(13, seed=2).softmax(-1), draw(17, seed=3).softmax(-1)
    arrays = [part.numpy() for part in (inner(x, cost), inner(y, cost), a, b)]
    result = gromov(x, y, cost, a, b, kind="entropic", epsilon=epsilon, tolerance=1e-8)
    options: dict[str, Any] = {"numItermax": 100_000, "stopThr": 1e-12, "log": True}
    plan, log = pot.gromov.entropic_gromov_wasserstein(
        *arrays, epsilon=epsilon, G0=result.plan_BNM.numpy(), max_iter=20, **options
    )
    assert result.converged_B
    np.testing.assert_allclose(result.plan_BNM, plan, atol=1e-3)
    np.testing.assert_allclose(result.value_B, log["gw_dist"], rtol=1e-3)


@pytest.mark.parametrize("cost", COSTS)
def test_is_between_the_third_lower_bound_and_some_permutations(cost: str) -> None:
    """Equal weights on 6 × 6 points: the optimum is a permutation; the bound is Mémoli's, with exact quantiles."""
    x, y = draw(30, 6, 3), draw(30, 6, 4, seed=1)
    c_x, c_y = inner(x, cost), inner(y, cost)
    found = gromov(x, y, cost).value_B
    orders = torch.tensor(list(itertools.permutations(range(6))))
    moved = c_y[:, orders[:, :, None], orders[:, None, :]]
    every = (c_x[:, None] - moved).square().mean((-2, -1))
    best, mean = every.amin(-1), every.mean(-1)
    quantile_gap = torch.cdist(c_x.sort(-1).values, c_y.sort(-1).values).square() / 6
    bound = exact.solve(quantile_gap, None, None, exact.Config()).value_B
    assert (bound <= best + 1e-12).all()
    assert (found >= best - 1e-12).all()
    assert (found - best).mean() < 0.25 * (mean - best).mean()
    assert ((found - best) < 1e-12).float().mean() > 0.1


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("n", [5, 17, 40])
def test_finds_an_isometry_with_scale_into_another_space(cost: str, n: int) -> None:
    x = draw(n, 3)
    result = gromov(x, rotated(x), cost)
    assert result.value_B.abs() < 1e-12
    torch.testing.assert_close(result.plan_BNM.amax(-1), torch.full((n,), 1 / n, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["exact", "entropic"])
def test_moving_a_cloud_rigidly_keeps_the_value(kind: str) -> None:
    x, y = draw(13, 3), draw(17, 4, seed=1)
    torch.testing.assert_close(
        gromov(rotated(x), y, kind=kind).value_B, gromov(x, y, kind=kind).value_B, rtol=1e-5, atol=0
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000), st.sampled_from(COSTS))
def test_properties_of_the_plan_found(n: int, m: int, seed: int, cost: str) -> None:
    """Not above the product, whose value has a closed form, and stationary: no vertex lies below to first order."""
    x, y = draw(n, 3, seed=seed), draw(m, 2, seed=seed + 1)
    a, b = draw(n, seed=seed + 2).softmax(-1), draw(m, seed=seed + 3).softmax(-1)
    result = gromov(x, y, cost, a, b)
    c_x, c_y = inner(x, cost), inner(y, cost)
    product = a @ c_x.square() @ a + b @ c_y.square() @ b - 2 * (a @ c_x @ a) * (b @ c_y @ b)
    assert -1e-12 <= result.value_B <= product + 1e-9
    assert result.converged_B
    slope = 2 * ((c_x.square() @ a)[:, None] + c_y.square() @ b - 2 * c_x @ result.plan_BNM @ c_y)
    best = exact.solve(slope, a, b, exact.Config()).value_B
    assert (slope * result.plan_BNM).sum() - best <= 1.01e-7 * product + 1e-12


@pytest.mark.parametrize("cost", COSTS)
def test_the_gradient_equals_finite_differences(cost: str) -> None:
    """The plan is a vertex and does not move under small changes of the points."""
    x, y = draw(2, 5, 3).requires_grad_(), draw(2, 7, 4, seed=1).requires_grad_()

    def value(x: Tensor, y: Tensor) -> Tensor:
        return solve(Clouds(x, y, cost, "none"), None, None, Config()).value_B

    assert torch.autograd.gradcheck(value, (x, y))


def test_the_entropic_gradient_is_that_of_the_entropic_objective() -> None:
    """Truth: finite differences of E(P) + ε KL(P | a bᵀ), from its definition."""
    x, y = draw(5, 2), draw(6, 3, seed=1)
    config = Config(kind="entropic", epsilon=5.0, tolerance=1e-11, max_iters=100)

    def objective(x: Tensor) -> Tensor:
        result = solve(Clouds(x, y, normalize="none"), None, None, config)
        plan = result.plan_BNM
        assert plan is not None
        return (
            result.value_B + config.epsilon * (torch.xlogy(plan, plan) - torch.xlogy(plan, torch.tensor(1 / 30))).sum()
        )

    point = x.clone().requires_grad_()
    objective(point).backward()
    assert point.grad is not None
    for i, j in ((0, 0), (2, 1), (4, 0)):
        step = torch.zeros_like(x)
        step[i, j] = 1e-4
        difference = (objective(x + step) - objective(x - step)) / 2e-4
        torch.testing.assert_close(point.grad[i, j], difference, rtol=1e-4, atol=1e-4)


def test_problems_of_a_batch_do_not_disturb_each_other() -> None:
    x, y = draw(6, 13, 3), draw(6, 17, 4, seed=1)
    x[2, 1, 1] = torch.nan
    batched = gromov(x, y)
    single = torch.stack([gromov(x[i], y[i]).value_B for i in range(6)])
    torch.testing.assert_close(batched.value_B, single, equal_nan=True)
    assert batched.converged_B.tolist() == [True, True, False, True, True, True]
    assert not batched.value_B[2].isfinite()


@pytest.mark.parametrize("kind", ["exact", "entropic"])
def test_giving_up_is_reported(kind: str) -> None:
    result = gromov(draw(3, 40, 3), draw(3, 40, 4, seed=1), kind=kind, max_iters=1)
    assert result.n_iters == 1
    assert not result.converged_B.any()
    assert (result.marginal_error_B < 1e-6).all()


def test_more_entropy_spreads_the_plan() -> None:
    x, y = draw(13, 3), draw(17, 4, seed=1)
    largest = [gromov(x, y, kind="entropic", epsilon=epsilon).plan_BNM.max() for epsilon in (0.05, 0.5, 500.0)]
    assert largest[0] > largest[1] > largest[2]
    torch.testing.assert_close(largest[2], torch.tensor(1 / 13 / 17).double(), rtol=0.1, atol=0)


def test_batches_have_to_agree_and_widths_need_not() -> None:
    assert gromov(draw(5, 3), draw(7, 11)).converged_B
    with pytest.raises(OtkdError, match="same leading dimensions"):
        gromov(draw(2, 5, 3), draw(3, 5, 3))
