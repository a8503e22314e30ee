"""Proximal steps against exact transport, the paper's algorithm as printed, and their own certificate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.ot import exact, relaxed
from otkd.ot.cost import normalized, sqeuclidean
from otkd.ot.proximal import Config, solve
from otkd.ot.result import TransportResult


def problem(n: int = 13, m: int = 17, seed: int = 0, d: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cost = normalized(sqeuclidean(draw(n, d), draw(m, d)), "mean")
    return cost, (0.5 * draw(n)).softmax(-1), (0.5 * draw(m)).softmax(-1)


def optimum(cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    return exact.solve(cost, a, b, exact.Config()).value_B


def plan_of(result: TransportResult) -> Tensor:
    assert result.plan_BNM is not None
    return result.plan_BNM


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("inner", [1, 3])
@pytest.mark.parametrize("shape", [(13, 17), (31, 29)])
def test_comes_within_the_tolerance_of_the_exact_value(beta: float, inner: int, shape: tuple[int, int]) -> None:
    cost, a, b = problem(*shape)
    result = solve(cost, a, b, Config(beta=beta, inner=inner))
    assert result.converged_B
    assert 0 <= result.value_B - optimum(cost, a, b) <= 1e-3


def test_converges_to_the_exact_plan() -> None:
    cost, a, b = problem()
    result = solve(cost, a, b, Config(tolerance=1e-10, max_iters=20_000))
    assert result.converged_B
    torch.testing.assert_close(result.plan_BNM, exact.solve(cost, a, b, exact.Config()).plan_BNM, rtol=0, atol=1e-8)


@pytest.mark.parametrize("inner", [1, 2])
def test_follows_the_algorithm_of_the_paper(inner: int) -> None:
    """Xie et al., Alg. 1 as printed, on kernels, but with this start: Γ = a bᵀ and a second scaling of 1."""
    cost, a, b = problem()
    gibbs, plan, v = torch.exp(-cost / 0.5), a[:, None] * b, torch.ones_like(b)
    for _ in range(2000):
        kernel = gibbs * plan
        for _ in range(inner):
            u = a / (kernel @ v)
            v = b / (kernel.mT @ u)
        plan = u[:, None] * kernel * v
    assert (plan.sum(-1) - a).abs().sum() < 1e-7  # what rounding then moves
    result = solve(cost, a, b, Config(beta=0.5, inner=inner, tolerance=1e-12, max_iters=2000))
    assert result.n_iters == 2000
    torch.testing.assert_close(result.plan_BNM, plan, rtol=0, atol=1e-7)


@pytest.mark.parametrize("max_iters", [1, 5, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_certifies_itself_at_any_time(max_iters: int, dtype: torch.dtype) -> None:
    """The marginals are exact, the potentials feasible, and what is converged is no farther off than it says."""
    cost, a, b = (part.to(dtype) for part in problem())
    slack = 20 * torch.finfo(dtype).eps
    result = solve(cost, a, b, Config(max_iters=max_iters))
    assert result.potentials is not None
    (f, g), plan = result.potentials, plan_of(result)
    assert plan.min() >= 0
    assert result.marginal_error_B < slack
    assert (cost - f[:, None] - g).min() > -slack
    gap = result.value_B - (a * f).sum() - (b * g).sum()
    assert -slack < result.value_B - optimum(cost, a, b) <= gap + slack
    assert (gap <= 1e-3) == result.converged_B


def test_the_potentials_come_close_to_the_dual_optimum() -> None:
    cost, a, b = problem()
    result = solve(cost, a, b, Config(tolerance=1e-6, max_iters=10_000))
    assert result.potentials is not None
    dual = (a * result.potentials[0]).sum() + (b * result.potentials[1]).sum()
    assert -1e-12 < optimum(cost, a, b) - dual < 1e-6


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_single_precision_survives_thousands_of_steps(beta: float) -> None:
    cost, a, b = problem(31, 29)
    result = solve(cost.float(), a.float(), b.float(), Config(beta=beta, inner=3, tolerance=1e-12, max_iters=2000))
    assert plan_of(result).isfinite().all()
    assert not result.converged_B
    torch.testing.assert_close(result.value_B.double(), optimum(cost, a, b), rtol=0, atol=1e-3)


def test_cheap_pairs_of_points_without_weight_do_no_harm() -> None:
    """Their density grows beyond all bounds."""
    cost, a, b = problem()
    a[:3], b[:4] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    cost[:3, :4] = -100
    result = solve(cost.float(), a, b, Config())
    assert result.converged_B
    torch.testing.assert_close(result.value_B.double(), optimum(cost, a, b), rtol=0, atol=1e-3)
    assert plan_of(result)[:3].sum() == plan_of(result)[:, :4].sum() == 0


def test_the_gradient_is_the_rounded_plan() -> None:
    cost, a, b = problem()
    result = solve(cost.requires_grad_(), a, b, Config())
    result.value_B.backward()
    assert torch.equal(cost.grad, plan_of(result))


def test_giving_up_is_reported_and_does_not_hide() -> None:
    easy, hard = torch.full((13, 17), 0.5, dtype=torch.float64), problem()[0]
    result = solve(torch.stack([easy, hard, easy]), None, None, Config(max_iters=5))
    assert result.n_iters == 5
    assert result.converged_B.tolist() == [True, False, True]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), m=st.integers(1, 9), beta=st.floats(0.1, 2.0), seed=st.integers(0, 10_000))
def test_properties(n: int, m: int, beta: float, seed: int) -> None:
    cost, a, b = problem(n, m, seed)
    config = Config(beta=beta, max_iters=5000)
    result = solve(cost, a, b, config)
    assert result.converged_B
    below, truth = relaxed.solve(cost, a, b, relaxed.Config()).value_B, optimum(cost, a, b)
    assert below - 1e-9 <= truth <= result.value_B + 1e-9
    assert result.value_B <= truth + config.tolerance
    assert abs(solve(cost.mT, b, a, config).value_B - result.value_B) <= config.tolerance
    scaled = solve(8 * cost, a, b, Config(beta=8 * beta, tolerance=8e-3, max_iters=5000))
    torch.testing.assert_close(scaled.value_B, 8 * result.value_B)
