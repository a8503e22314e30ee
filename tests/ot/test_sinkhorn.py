"""Sinkhorn against POT, duality, finite differences, and properties over random problems."""

from __future__ import annotations

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.ot import exact
from otkd.ot.cost import normalized, sqeuclidean
from otkd.ot.result import TransportResult
from otkd.ot.sinkhorn import Config, solve

EPSILONS = [1e-3, 1e-2, 0.05, 0.3, 1.0]
TIGHT = 1e-10


def problem(n: int = 13, m: int = 17, seed: int = 0, d: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cost = normalized(sqeuclidean(draw(n, d), draw(m, d)), "mean")
    return cost, (0.5 * draw(n)).softmax(-1), (0.5 * draw(m)).softmax(-1)


def tight(epsilon: float, **options: object) -> Config:
    return Config.model_validate({"epsilon": epsilon, "tolerance": TIGHT, "max_iters": 5000, **options})


def entropic_value(result: TransportResult, cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """⟨P, C⟩ + ε KL(P | a⊗b), from its definition."""
    plan = result.plan_BNM
    assert plan is not None
    return (plan * cost).sum() + epsilon * (torch.xlogy(plan, plan) - torch.xlogy(plan, a[:, None] * b)).sum()


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_plan_and_both_values_equal_pot(epsilon: float) -> None:
    cost, a, b = problem()
    arrays = a.numpy(), b.numpy(), cost.numpy()
    plan = pot.sinkhorn(*arrays, epsilon, method="sinkhorn_log", numItermax=100_000, stopThr=1e-11)
    dual = solve(cost, a, b, tight(epsilon))
    primal = solve(cost, a, b, tight(epsilon, value="primal"))
    assert dual.converged_B
    np.testing.assert_allclose(dual.plan_BNM, plan, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(primal.value_B, (plan * arrays[2]).sum(), rtol=1e-7)
    divergence = pot.utils.get_backend(plan).kl_div(plan, np.outer(*arrays[:2]))
    np.testing.assert_allclose(dual.value_B, (plan * arrays[2]).sum() + epsilon * divergence, rtol=1e-7)


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_dual_value_equals_pots_solver_with_kl(epsilon: float) -> None:
    cost, a, b = problem()
    truth = pot.solve(cost.numpy(), a.numpy(), b.numpy(), reg=epsilon, reg_type="KL", max_iter=100_000, tol=1e-11)
    np.testing.assert_allclose(solve(cost, a, b, tight(epsilon)).value_B, truth.value, rtol=1e-7)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("shape", [(13, 17), (31, 31), (1, 5)])
def test_the_result_certifies_itself(epsilon: float, shape: tuple[int, int]) -> None:
    """Whatever the solver does inside: P = a b exp((f + g − C)/ε) with the right marginals is the one optimum."""
    cost, a, b = problem(*shape, d=5)
    result = solve(cost, a, b, tight(epsilon))
    assert result.potentials is not None
    f, g = result.potentials
    torch.testing.assert_close(result.plan_BNM, a[:, None] * b * torch.exp((f[:, None] + g - cost) / epsilon))
    assert result.marginal_error_B < TIGHT
    torch.testing.assert_close(result.value_B, entropic_value(result, cost, a, b, epsilon))


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_the_gradient_of_dual_equals_finite_differences(epsilon: float) -> None:
    cost, a, b = problem(5, 7)
    config = tight(epsilon, tolerance=1e-13)
    assert torch.autograd.gradcheck(lambda c: solve(c, a, b, config).value_B, cost.requires_grad_(), atol=1e-6)


def test_the_gradient_of_primal_is_that_of_dual_and_not_its_own_derivative() -> None:
    cost, a, b = problem(5, 7)
    config = tight(0.3, value="primal", tolerance=1e-13)
    cost.requires_grad_()
    (envelope,) = torch.autograd.grad(solve(cost, a, b, config).value_B, cost)
    torch.testing.assert_close(envelope, solve(cost, a, b, tight(0.3)).plan_BNM, rtol=1e-6, atol=1e-9)
    step = torch.zeros_like(cost)
    step[2, 3] = 1e-5
    with torch.no_grad():
        slope = (solve(cost + step, a, b, config).value_B - solve(cost - step, a, b, config).value_B) / 2e-5
    assert abs(slope - envelope[2, 3]) > 1e-3


@pytest.mark.parametrize("check_every", [1, 7, 50])
def test_how_often_it_looks_does_not_change_the_answer(check_every: int) -> None:
    cost, a, b = problem()
    truth = solve(cost, a, b, tight(0.01)).value_B
    torch.testing.assert_close(solve(cost, a, b, tight(0.01, check_every=check_every)).value_B, truth)


@pytest.mark.parametrize("max_iters", [1, 3, 25])
def test_giving_up_is_reported(max_iters: int) -> None:
    result = solve(*problem(), tight(0.01, max_iters=max_iters))
    assert result.n_iters == max_iters
    assert not result.converged_B
    assert result.marginal_error_B > TIGHT


def test_one_hard_problem_does_not_hide_behind_easy_ones() -> None:
    hard, easy = problem()[0], torch.full((13, 17), 0.5, dtype=torch.float64)
    result = solve(torch.stack([easy, hard, easy]), None, None, tight(0.01, max_iters=10))
    assert result.converged_B.tolist() == [True, False, True]


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_single_precision_stays_finite_and_close(epsilon: float) -> None:
    cost, a, b = problem(31, 29)
    single = solve(cost.float().requires_grad_(), a.float(), b.float(), Config(epsilon=epsilon))
    assert single.plan_BNM is not None
    assert single.plan_BNM.isfinite().all()
    assert single.marginal_error_B < 1e-2
    truth = solve(cost, a, b, tight(epsilon)).value_B
    torch.testing.assert_close(single.value_B.double(), truth, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_costs_of_any_size_are_survived(scale: float) -> None:
    """Far outside the range that one exponential covers; the log-sum-exp path has to take over."""
    cost, a, b = problem()
    result = solve(cost.float() * scale, a, b, Config(epsilon=0.05, max_iters=60))
    assert result.value_B.isfinite()
    assert result.plan_BNM is not None
    assert result.plan_BNM.isfinite().all()


def test_epsilon_scales_with_the_cost() -> None:
    cost, a, b = problem()
    torch.testing.assert_close(
        solve(100 * cost, a, b, tight(5.0)).value_B, 100 * solve(cost, a, b, tight(0.05)).value_B
    )


def test_without_newton_steps_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, a, b = problem()
    with_newton = solve(cost, a, b, tight(0.05))
    monkeypatch.setattr("otkd.ot.sinkhorn.NEWTON_SIZE", 0)
    plain = solve(cost, a, b, tight(0.05))
    torch.testing.assert_close(plain.plan_BNM, with_newton.plan_BNM, rtol=1e-7, atol=1e-9)
    assert plain.n_iters > with_newton.n_iters


def test_by_log_sum_exp_alone_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cost, a, b = problem()
    scaled = solve(cost, a, b, tight(0.05))
    monkeypatch.setattr("otkd.ot.sinkhorn._scaling", lambda problem, f, g, *_: (f * torch.nan, g))
    torch.testing.assert_close(solve(cost, a, b, tight(0.05)).plan_BNM, scaled.plan_BNM, rtol=1e-7, atol=1e-9)


sizes = st.integers(1, 9)
epsilons = st.floats(5e-3, 2.0)
seeds = st.integers(0, 10_000)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=sizes, m=sizes, epsilon=epsilons, seed=seeds)
def test_properties(n: int, m: int, epsilon: float, seed: int) -> None:
    cost, a, b = problem(n, m, seed)
    config = tight(epsilon, value="primal", tolerance=1e-8)
    result = solve(cost, a, b, config)
    assert result.converged_B
    optimum = exact.solve(cost, a, b, exact.Config()).value_B
    independent = (a[:, None] * b * cost).sum()
    entropic = solve(cost, a, b, tight(epsilon, tolerance=1e-8)).value_B
    assert optimum - 1e-7 <= result.value_B <= entropic + 1e-7
    assert entropic <= independent + 1e-7
    torch.testing.assert_close(solve(cost.mT, b, a, config).value_B, result.value_B, rtol=1e-5, atol=1e-6)
