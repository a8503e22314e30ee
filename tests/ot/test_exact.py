"""The network simplex against scipy's linear program and the closed form on a line."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
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


def test_one_hard_problem_does_not_hide_behind_easy_ones() -> None:
    easy, hard = torch.ones(13, 17, dtype=torch.float64), draw(13, 17)
    result = solve(torch.stack([easy, hard, easy]), None, None, Config(max_iters=40))
    assert result.converged_B.tolist() == [True, False, True]


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_the_plan_does_not_depend_on_the_unit_of_the_cost(scale: float) -> None:
    """POT by itself takes gains below about 1e-13 for none."""
    cost = draw(13, 17)
    result, scaled = (solve(unit * cost, None, None, Config()) for unit in (1, scale))
    torch.testing.assert_close(scaled.plan_BNM, result.plan_BNM)
    torch.testing.assert_close(scaled.value_B, scale * result.value_B, rtol=1e-12, atol=0)


def test_a_constant_shifts_the_value_and_the_potentials() -> None:
    """Below 0 too, where POT by itself finds no plan."""
    cost = draw(3, 13, 17)
    result, shifted = (solve(cost + constant, None, None, Config()) for constant in (0, -3))
    assert shifted.converged_B.all()
    torch.testing.assert_close(shifted.value_B, result.value_B - 3)
    assert shifted.potentials is not None
    assert result.potentials is not None
    for part, moved in zip(result.potentials, shifted.potentials, strict=True):
        torch.testing.assert_close(moved, part - 1.5)


def test_potentials_of_points_without_weight_are_feasible() -> None:
    cost, a, b = draw(5, 7), torch.tensor([0.5, 0, 0.2, 0.3, 0]), torch.tensor([0, 0.4, 0.1, 0, 0, 0.5, 0])
    result = solve(cost, a, b, Config())
    assert result.potentials is not None
    assert (cost - result.potentials[0][:, None] - result.potentials[1]).min() > -1e-12


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_answer_nor_order(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each problem's value is its own: the batch is solved in the order in which it came."""
    monkeypatch.setattr("otkd.ot.threads.THREADED_SIZE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    cost = draw(11, 13, 17)
    cost[4, 0, 0] = torch.nan
    result = solve(cost, None, None, Config())
    assert result.converged_B.tolist() == [index != 4 for index in range(11)]
    for index in (0, 3, 5, 10):
        torch.testing.assert_close(result.plan_BNM[index], solve(cost[index], None, None, Config()).plan_BNM)


def test_giving_up_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = solve(draw(3, 13, 17), None, None, Config(max_iters=1))
    assert not result.converged_B.any()
