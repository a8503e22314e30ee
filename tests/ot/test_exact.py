"""The network simplex against scipy's linear program and the closed form on a line."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from otkd.ot.exact import Config, solve


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_linear_program() -> None:
    cost, a, b = draw(7, 9), draw(7, seed=1), draw(9, seed=2)
    a, b = a / a.sum(), b / b.sum()
    constraints = np.vstack([np.kron(np.eye(7), np.ones(9)), np.kron(np.ones(7), np.eye(9))])
    truth = linprog(cost.flatten().numpy(), A_eq=constraints, b_eq=torch.cat([a, b]).numpy())
    result = solve(cost, a, b, Config())
    np.testing.assert_allclose(result.value_B, truth.fun, rtol=1e-9)
    np.testing.assert_allclose(result.plan_BNM, truth.x.reshape(7, 9), atol=1e-9)


def test_equals_the_assignment() -> None:
    cost = draw(11, 11)
    rows, columns = linear_sum_assignment(cost.numpy())
    np.testing.assert_allclose(solve(cost, None, None, Config()).value_B, cost[rows, columns].mean(), rtol=1e-12)


def test_closed_form_on_a_line() -> None:
    """On a line the optimal plan for a convex cost pairs the points in order."""
    x, y = draw(13), draw(13, seed=1) * 2
    value = solve((x[:, None] - y[None]) ** 2, None, None, Config()).value_B
    torch.testing.assert_close(value, (x.sort().values - y.sort().values).square().mean())


def test_potentials_certify_the_optimum() -> None:
    """Duality: f + g ≤ C everywhere, with equality on the plan, and a·f + b·g is the value."""
    cost = draw(3, 7, 9)
    result = solve(cost, None, None, Config())
    assert result.potentials is not None
    f, g = result.potentials
    slack = cost - f[..., :, None] - g[..., None, :]
    assert slack.min() > -1e-12
    assert slack[result.plan_BNM > 0].abs().max() < 1e-12
    torch.testing.assert_close(f.mean(-1) + g.mean(-1), result.value_B)


def test_gradient_equals_finite_differences() -> None:
    """Equal weights on 5 × 7 points: the optimal plan of a generic cost is unique and locally constant."""
    cost = draw(5, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: solve(c, None, None, Config()).value_B, cost)


def test_giving_up_is_reported() -> None:
    result = solve(draw(13, 17), None, None, Config(max_iters=1))
    assert not result.converged_B
