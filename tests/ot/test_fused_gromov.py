"""Fused Gromov–Wasserstein against POT, exact transport at α = 0, `gromov` at α = 1, and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from otkd.ot import exact, gromov, sinkhorn
from otkd.ot.clouds import Clouds
from otkd.ot.fused_gromov import Config, solve

COSTS = ["sqeuclidean", "euclidean", "cosine"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n: int = 13, m: int = 17, cost: str = "sqeuclidean", seed: int = 0) -> tuple[Clouds, Tensor, Tensor]:
    clouds = Clouds(draw(n, 3, seed=seed), 0.5 + draw(m, 3, seed=seed + 1), cost)
    return clouds, draw(n, seed=seed + 2).softmax(-1), draw(m, seed=seed + 3).softmax(-1)


def config(**options: Any) -> Config:
    return Config.model_validate(options)


def inner(x: Tensor, cost: str) -> Tensor:
    """Costs inside a cloud, divided by their mean where that is not 0."""
    return Clouds(x, x, cost, "mean").cross


@pytest.mark.parametrize("cost", COSTS)
def test_alpha_0_is_exact_transport(cost: str) -> None:
    clouds, a, b = problem(cost=cost)
    truth = exact.solve(clouds.cross, a, b, exact.Config())
    result = solve(clouds, a, b, config(alpha=0))
    torch.testing.assert_close(result.value_B, truth.value_B)
    torch.testing.assert_close(result.plan_BNM, truth.plan_BNM)


def test_alpha_0_with_entropy_is_sinkhorn() -> None:
    clouds, a, b = problem()
    truth = sinkhorn.solve(clouds.cross, a, b, sinkhorn.Config(value="primal", tolerance=1e-10))
    result = solve(clouds, a, b, config(alpha=0, kind="entropic"))
    torch.testing.assert_close(result.value_B, truth.value_B)
    torch.testing.assert_close(result.plan_BNM, truth.plan_BNM)


@pytest.mark.parametrize("kind", ["exact", "entropic"])
def test_alpha_1_is_gromov(kind: str) -> None:
    clouds, a, b = problem()
    truth = gromov.solve(clouds, a, b, gromov.Config.model_validate({"kind": kind}))
    result = solve(clouds, a, b, config(alpha=1, kind=kind))
    torch.testing.assert_close(result.value_B, truth.value_B)
    torch.testing.assert_close(result.plan_BNM, truth.plan_BNM)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_is_not_above_pot_and_pot_cannot_improve_it(cost: str, alpha: float) -> None:
    clouds, a, b = problem(cost=cost)
    structures = inner(clouds.x_BND, cost), inner(clouds.y_BME, cost)
    arrays = [part.numpy() for part in (clouds.cross, *structures, a, b)]
    result = solve(clouds, a, b, config(alpha=alpha))
    assert result.plan_BNM is not None
    _, from_product = pot.gromov.fused_gromov_wasserstein(*arrays, alpha=alpha, log=True)
    start = result.plan_BNM.numpy()
    _, from_ours = pot.gromov.fused_gromov_wasserstein(*arrays, alpha=alpha, G0=start, log=True)
    assert result.value_B <= from_product["fgw_dist"] * (1 + 1e-9)
    np.testing.assert_allclose(result.value_B, from_ours["fgw_dist"], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_the_entropic_plan_is_stationary_for_pot(alpha: float) -> None:
    clouds, a, b = problem()
    structures = inner(clouds.x_BND, "sqeuclidean"), inner(clouds.y_BME, "sqeuclidean")
    arrays = [part.numpy() for part in (clouds.cross, *structures, a, b)]
    result = solve(clouds, a, b, config(alpha=alpha, kind="entropic", epsilon=0.3))
    assert result.plan_BNM is not None
    plan, log = pot.gromov.entropic_fused_gromov_wasserstein(
        *arrays, alpha=alpha, epsilon=0.3, G0=result.plan_BNM.numpy(), max_iter=20, log=True, numItermax=10_000
    )
    assert result.converged_B
    np.testing.assert_allclose(result.plan_BNM, plan, atol=1e-3)
    np.testing.assert_allclose(result.value_B, log["fgw_dist"], rtol=1e-3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000), st.sampled_from(COSTS), st.floats(0, 1, width=16))
def test_weighs_both_parts_of_one_plan(n: int, m: int, seed: int, cost: str, alpha: float) -> None:
    """Truth: the quadruple sum. The first part alone is at least that of exact transport."""
    clouds, a, b = problem(n, m, cost, seed)
    result = solve(clouds, a, b, config(alpha=alpha))
    plan = result.plan_BNM
    assert plan is not None
    assert result.converged_B
    gap = inner(clouds.x_BND, cost)[:, None, :, None] - inner(clouds.y_BME, cost)[None, :, None, :]
    crossing, distortion = (plan * clouds.cross).sum(), torch.einsum("ijkl,ij,kl->", gap.square(), plan, plan)
    torch.testing.assert_close(result.value_B, (1 - alpha) * crossing + alpha * distortion)
    assert crossing >= exact.solve(clouds.cross, a, b, exact.Config()).value_B - 1e-12


def test_a_cloud_in_another_order_is_found_and_a_turned_one_pays_for_the_way() -> None:
    x = draw(17, 3)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    same = solve(Clouds(x, x[order]), None, None, config())
    assert same.value_B.abs() < 1e-9
    assert (same.plan_BNM * 17).round()[order, torch.arange(17)].eq(1).all()
    turned = solve(Clouds(x, x[order] @ torch.linalg.qr(draw(3, 3)).Q), None, None, config())
    assert turned.value_B > 0.01


@pytest.mark.parametrize("cost", COSTS)
def test_the_gradient_equals_finite_differences(cost: str) -> None:
    x, y = draw(2, 5, 3).requires_grad_(), draw(2, 7, 3, seed=1).requires_grad_()

    def value(x: Tensor, y: Tensor) -> Tensor:
        return solve(Clouds(x, y, cost, "none"), None, None, config(alpha=0.3)).value_B

    assert torch.autograd.gradcheck(value, (x, y))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValidationError):
        config(alpha=alpha)
