"""Partial transport against scipy's linear program, POT, and exact transport."""

from __future__ import annotations

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linprog
from torch import Tensor

from otkd.ot import exact
from otkd.ot.partial import Config, solve


def problem(n: int = 13, m: int = 17, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw(n, m), draw(n).softmax(-1), draw(m).softmax(-1)


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("shift", [0.0, -0.7])
def test_equals_the_linear_program(mass: float, shift: float) -> None:
    cost, a, b = problem(7, 9)
    cost = cost + shift
    above = np.vstack([np.kron(np.eye(7), np.ones(9)), np.kron(np.ones(7), np.eye(9))])
    truth = linprog(
        cost.flatten().numpy(), A_ub=above, b_ub=torch.cat([a, b]).numpy(), A_eq=np.ones((1, 63)), b_eq=[mass]
    )
    result = solve(cost, a, b, Config(mass=mass))
    assert result.converged_B
    np.testing.assert_allclose(result.value_B, truth.fun, rtol=1e-9)
    np.testing.assert_allclose(result.plan_BNM, truth.x.reshape(7, 9), atol=1e-9)


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.95])
def test_equals_pot(mass: float) -> None:
    cost, a, b = problem()
    plan = pot.partial.partial_wasserstein(a.numpy(), b.numpy(), cost.numpy(), m=mass)
    np.testing.assert_allclose(solve(cost, a, b, Config(mass=mass)).plan_BNM, plan, atol=1e-12)


def test_the_whole_mass_is_exact_transport() -> None:
    cost, a, b = problem()
    truth, result = exact.solve(cost, a, b, exact.Config()), solve(cost, a, b, Config(mass=1.0))
    assert torch.equal(result.plan_BNM, truth.plan_BNM)
    almost = solve(cost, a, b, Config(mass=1 - 1e-9))
    torch.testing.assert_close(almost.value_B, truth.value_B, rtol=1e-7, atol=0)


def test_an_outlier_is_left_where_it_is() -> None:
    """13 points paired at cost 0 but for one that is far from all: nine tenths fit without it."""
    cost = 1 - torch.eye(13, dtype=torch.float64)
    cost[5] = 100
    result = solve(cost, None, None, Config(mass=0.9))
    torch.testing.assert_close(result.value_B, torch.zeros((), dtype=torch.float64))
    assert result.plan_BNM[5].sum() == 0


def test_gradient_equals_finite_differences() -> None:
    cost, a, b = problem(5, 7)
    assert torch.autograd.gradcheck(lambda c: solve(c, a, b, Config(mass=0.6)).value_B, cost.requires_grad_())


def test_giving_up_is_reported_and_does_not_hide() -> None:
    easy, hard = torch.ones(13, 17, dtype=torch.float64), problem()[0]
    result = solve(torch.stack([easy, hard, easy]), None, None, Config(max_iters=40))
    assert result.converged_B.tolist() == [True, False, True]


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.5])
def test_only_a_fraction_is_taken(mass: float) -> None:
    with pytest.raises(ValidationError, match="mass"):
        Config(mass=mass)


masses = st.floats(0.01, 1.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 9), m=st.integers(1, 9), less=masses, more=masses, seed=st.integers(0, 10_000))
def test_properties(n: int, m: int, less: float, more: float, seed: int) -> None:
    """Value and value per mass grow with the mass; scaling and transposing the cost do what they should."""
    cost, a, b = problem(n, m, seed)
    less, more = sorted((less, more))
    lower, upper = (solve(cost, a, b, Config(mass=mass)) for mass in (less, more))
    for result, mass in ((lower, less), (upper, more)):
        plan = result.plan_BNM
        assert plan is not None
        assert result.converged_B
        assert plan.min() >= 0
        assert plan.sum().item() == pytest.approx(mass, abs=1e-12)
        assert (plan.sum(-1) - a).max() < 1e-12
        assert (plan.sum(-2) - b).max() < 1e-12
        assert result.marginal_error_B.item() == pytest.approx(2 * (1 - mass), abs=1e-12)
    assert lower.value_B <= upper.value_B + 1e-12
    assert lower.value_B / less <= upper.value_B / more + 1e-12
    torch.testing.assert_close(solve(cost.mT, b, a, Config(mass=less)).value_B, lower.value_B)
    torch.testing.assert_close(solve(7 * cost - 2, a, b, Config(mass=less)).value_B, 7 * lower.value_B - 2 * less)
