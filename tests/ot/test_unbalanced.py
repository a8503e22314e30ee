"""Unbalanced transport against POT, its own optimality conditions, closed forms, and balanced transport."""

from __future__ import annotations

import math

import numpy as np
import ot as pot
import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.ot import sinkhorn
from otkd.ot.cost import normalized, sqeuclidean
from otkd.ot.result import TransportResult
from otkd.ot.unbalanced import Config, solve

EPSILONS = [1e-3, 0.01, 0.05, 0.3]
REACHES = [0.01, 0.1, 1.0, 10.0, 1e3]
TIGHT = 1e-10


def problem(n: int = 13, m: int = 17, seed: int = 0, d: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cost = normalized(sqeuclidean(draw(n, d), draw(m, d)), "mean")
    return cost, (0.5 * draw(n)).softmax(-1), (0.5 * draw(m)).softmax(-1)


def tight(epsilon: float, reach: float, **options: object) -> Config:
    return Config.model_validate({"epsilon": epsilon, "reach": reach, "tolerance": TIGHT, "max_iters": 5000, **options})


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q) - p + q).sum()


def objective(plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, reach: float) -> Tensor:
    """⟨P, C⟩ + ε KL(P | a⊗b) + ρ KL(P1 | a) + ρ KL(Pᵀ1 | b), from its definition."""
    held = divergence(plan.sum(-1), a) + divergence(plan.sum(-2), b)
    return (plan * cost).sum() + epsilon * divergence(plan, a[:, None] * b) + reach * held


def plan_of(result: TransportResult) -> Tensor:
    assert result.plan_BNM is not None
    return result.plan_BNM


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
@pytest.mark.parametrize("reach", [0.1, 1.0, 10.0])
def test_plan_equals_pot(epsilon: float, reach: float) -> None:
    cost, a, b = problem()
    options = {"method": "sinkhorn_stabilized", "reg_type": "kl", "numItermax": 20_000, "stopThr": 1e-13}
    plan = pot.unbalanced.sinkhorn_unbalanced(a.numpy(), b.numpy(), cost.numpy(), epsilon, reach, **options)
    result = solve(cost, a, b, tight(epsilon, reach))
    np.testing.assert_allclose(result.plan_BNM, plan, rtol=1e-6, atol=1e-10)


def test_value_equals_geomloss() -> None:
    """Its cost is |x − y|²/2, and its last step of many small ones leaves an error of about 1e-5."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (13, 17))
    options = {"blur": 0.5, "reach": 1.5, "scaling": 0.99, "debias": False, "backend": "tensorized"}
    truth = SamplesLoss("sinkhorn", p=2, **options)(x, y)
    result = solve(sqeuclidean(x, y) / 2, None, None, tight(0.5**2, 1.5**2))
    torch.testing.assert_close(result.value_B, truth, rtol=2e-4, atol=0)


@pytest.mark.parametrize("reach", [0.1, 1.0])
def test_a_general_minimiser_finds_nothing_better(reach: float) -> None:
    """POT's L-BFGS on the same objective over plans: it knows nothing of potentials."""
    cost, a, b = problem(7, 9)
    arrays, prior = (a.numpy(), b.numpy(), cost.numpy()), (a[:, None] * b).numpy()
    options = {"reg_div": "kl", "regm_div": "kl", "numItermax": 5000, "stopThr": 1e-14}
    plan = torch.from_numpy(pot.unbalanced.lbfgsb_unbalanced(*arrays, 0.3, reach, prior, **options))
    found, value = objective(plan, cost, a, b, 0.3, reach), solve(cost, a, b, tight(0.3, reach)).value_B
    assert value <= found + 1e-9
    torch.testing.assert_close(value, found, rtol=1e-5, atol=0)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("reach", REACHES)
def test_the_result_certifies_itself(epsilon: float, reach: float) -> None:
    """The conditions that only the optimum meets, and that its value is the objective and (2ρ + ε)(1 − ΣP)."""
    cost, a, b = problem()
    result = solve(cost, a, b, tight(epsilon, reach))
    assert result.converged_B
    assert result.potentials is not None
    plan, (f, g) = plan_of(result), result.potentials
    torch.testing.assert_close(plan, a[:, None] * b * torch.exp((f[:, None] + g - cost) / epsilon))
    torch.testing.assert_close(plan.sum(-1), a * torch.exp(-f / reach), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(plan.sum(-2), b * torch.exp(-g / reach), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(result.value_B, objective(plan, cost, a, b, epsilon, reach))
    torch.testing.assert_close(result.value_B, (2 * reach + epsilon) * (1 - plan.sum()))
    error = (plan.sum(-1) - a).abs().sum() + (plan.sum(-2) - b).abs().sum()
    torch.testing.assert_close(result.marginal_error_B, error)


@pytest.mark.parametrize("reach", [0.1, 10.0])
def test_one_point_each_in_closed_form(reach: float) -> None:
    """c + (2ρ + ε) log m = 0."""
    cost = torch.tensor([[0.7]], dtype=torch.float64)
    result = solve(cost, None, None, tight(0.05, reach))
    mass = math.exp(-0.7 / (2 * reach + 0.05))
    assert plan_of(result).item() == pytest.approx(mass)
    assert result.value_B.item() == pytest.approx((2 * reach + 0.05) * (1 - mass))


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.3])
def test_a_far_reach_is_balanced(epsilon: float) -> None:
    cost, a, b = problem()
    balanced = sinkhorn.solve(cost, a, b, sinkhorn.Config(epsilon=epsilon, tolerance=1e-9, max_iters=5000))
    result = solve(cost, a, b, tight(epsilon, 1e6))
    torch.testing.assert_close(result.value_B, balanced.value_B, rtol=1e-5, atol=0)
    torch.testing.assert_close(result.plan_BNM, balanced.plan_BNM, rtol=1e-4, atol=1e-7)
    assert result.marginal_error_B < 1e-5


def test_a_short_reach_moves_nothing_that_costs() -> None:
    """As ρ and ε go to 0; ρ alone leaves each pair its share exp(−C/ε) of the product a bᵀ."""
    cost, a, b = problem()
    masses = [plan_of(solve(cost + 0.1, a, b, tight(reach / 10, reach))).sum().item() for reach in (1, 0.1, 0.01, 1e-3)]
    assert masses == sorted(masses, reverse=True)
    assert masses[-1] < 1e-15 < 0.5 < masses[0]


@pytest.mark.parametrize("reach", [0.1, 1.0, 100.0])
def test_gradient_equals_finite_differences(reach: float) -> None:
    cost, a, b = problem(5, 7)
    config = tight(0.1, reach, tolerance=1e-13)
    assert torch.autograd.gradcheck(lambda c: solve(c, a, b, config).value_B, cost.requires_grad_(), atol=1e-6)


def test_an_outlier_is_left_where_it_is() -> None:
    cost = problem()[0]
    cost[5] += 100
    assert plan_of(solve(cost, None, None, Config()))[5].sum() < 1e-12


def test_cheap_pairs_of_points_without_weight_do_no_harm() -> None:
    cost, a, b = problem()
    a[:3], b[:4] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    truth = solve(cost[3:, 4:], a[3:], b[4:], Config(reach=0.1)).value_B
    cost[:3], cost[:, :4] = -100, -100
    result = solve(cost.float(), a, b, Config(reach=0.1))
    assert result.converged_B
    torch.testing.assert_close(result.value_B.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("reach", REACHES)
def test_single_precision_is_close(epsilon: float, reach: float) -> None:
    cost, a, b = problem(31, 29)
    single = solve(cost.float(), a.float(), b.float(), Config(epsilon=epsilon, reach=reach))
    assert single.converged_B
    truth = solve(cost, a, b, tight(epsilon, reach)).value_B
    torch.testing.assert_close(single.value_B.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reach", [1.0, 100.0])
def test_moving_the_constant_makes_large_reaches_as_fast_as_sinkhorn(
    reach: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Newton steps, against the plain iteration of Chizat et al. to the same stationarity."""
    monkeypatch.setattr("otkd.ot.unbalanced.NEWTON_SIZE", 0)
    cost, a, b = problem()
    result = solve(cost, a, b, Config(epsilon=0.05, reach=reach, check_every=1))
    assert result.n_iters < 0.7 * plain_iterations(cost, a, b, 0.05, reach)


def plain_iterations(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, reach: float) -> int:
    """How many updates u ← (a / K v)^(ρ/(ρ+ε)), v ← (b / Kᵀ u)^(ρ/(ρ+ε)) the default tolerance takes."""
    kernel, power = torch.exp(-cost / epsilon) * a[:, None] * b, reach / (reach + epsilon)
    u, v = torch.ones_like(a), torch.ones_like(b)
    for n_iters in range(1, 10_000):
        u = (a / (kernel @ v)) ** power
        v = (b / (kernel.mT @ u)) ** power
        miss = (u * (kernel @ v) - a * u ** (-epsilon / reach)).abs().sum()
        if miss + (v * (kernel.mT @ u) - b * v ** (-epsilon / reach)).abs().sum() <= Config().tolerance:
            return n_iters
    raise AssertionError("the plain iteration did not converge")


@pytest.mark.parametrize("check_every", [1, 7, 50])
def test_how_often_it_looks_does_not_change_the_answer(check_every: int) -> None:
    cost, a, b = problem()
    truth, result = (solve(cost, a, b, tight(0.01, 1.0, check_every=every)) for every in (10, check_every))
    torch.testing.assert_close(result.plan_BNM, truth.plan_BNM, rtol=1e-6, atol=1e-10)


def test_a_fixed_count_is_kept_and_judged() -> None:
    cost, a, b = problem()
    few, many = (solve(cost, a, b, Config(iterations=count)) for count in (3, 500))
    assert (few.n_iters, many.n_iters) == (3, 500)
    assert not few.converged_B
    assert many.converged_B
    torch.testing.assert_close(many.plan_BNM, solve(cost, a, b, tight(0.05, 1.0)).plan_BNM, rtol=1e-6, atol=1e-10)


def test_a_fixed_count_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way from a tensor to a Python number is cut off."""
    cost = problem()[0]

    def refuse(*_: object) -> None:
        raise AssertionError("waits for the device")

    for way in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu"):
        monkeypatch.setattr(Tensor, way, refuse)
    result = solve(cost, None, None, Config(iterations=5))
    monkeypatch.undo()
    assert result.value_B.isfinite()


@pytest.mark.parametrize("max_iters", [1, 3, 25])
def test_giving_up_is_reported_and_does_not_hide(max_iters: int) -> None:
    easy, hard = torch.full((13, 17), 0.5, dtype=torch.float64), problem()[0]
    result = solve(torch.stack([easy, hard, easy]), None, None, Config(epsilon=1e-3, max_iters=max_iters))
    assert result.n_iters == max_iters
    assert result.converged_B.tolist() == [True, False, True]


sizes = st.integers(1, 9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=sizes, m=sizes, epsilon=st.floats(5e-3, 2.0), reach=st.floats(0.01, 100.0), seed=st.integers(0, 10_000))
def test_properties(n: int, m: int, epsilon: float, reach: float, seed: int) -> None:
    """Between 0 and what no plan, the plan a bᵀ and the balanced plan cost; grows with ρ; scales; transposes."""
    cost, a, b = problem(n, m, seed)
    result = solve(cost, a, b, tight(epsilon, reach))
    assert result.converged_B
    value = result.value_B
    balanced = sinkhorn.solve(cost, a, b, sinkhorn.Config(epsilon=epsilon, tolerance=1e-8, max_iters=5000)).value_B
    assert 0 <= value <= min(2 * reach + epsilon, (a[:, None] * b * cost).sum(), balanced) + 1e-7
    assert value <= solve(cost, a, b, tight(epsilon, 2 * reach)).value_B + 1e-9
    torch.testing.assert_close(solve(cost.mT, b, a, tight(epsilon, reach)).value_B, value, rtol=1e-7, atol=1e-9)
    scaled = solve(100 * cost, a, b, tight(100 * epsilon, 100 * reach))
    torch.testing.assert_close(scaled.value_B, 100 * value, rtol=1e-7, atol=1e-7)
