"""Sinkhorn against POT, duality, finite differences, and properties over random problems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import ot as pot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otkd.core.errors import OtkdError
from otkd.ot import compiled, entropic_cpu, entropic_device, exact
from otkd.ot.clouds import Clouds, transport
from otkd.ot.cost import normalized, sqeuclidean
from otkd.ot.result import TransportResult
from otkd.ot.sinkhorn import Config, shortcut, solve

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


EXACT = [
    ("dual", {"gradient": "envelope"}),
    *((value, {"gradient": "implicit"}) for value in ("dual", "primal")),
    *((value, {"gradient": "unrolled", **extra}) for value in ("dual", "primal") for extra in ({}, {"iterations": 4})),
]


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
@pytest.mark.parametrize(("value", "options"), EXACT)
def test_gradients_equal_finite_differences(value: str, options: dict[str, object], epsilon: float) -> None:
    """In the cost and, where the mode has it, in the weights; 4 iterations are far from convergence."""
    cost, a, b = problem(5, 7)
    config = tight(epsilon, value=value, tolerance=1e-13, **options)
    inputs = [cost.requires_grad_()]
    if config.gradient != "envelope":
        inputs += [a.log().requires_grad_(), b.log().requires_grad_()]

    def of(cost: Tensor, *logits: Tensor) -> Tensor:
        weights = [part.softmax(-1) for part in logits] or [a, b]
        return solve(cost, *weights, config).value_B

    assert torch.autograd.gradcheck(of, inputs, atol=1e-6)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled"])
@pytest.mark.parametrize("value", ["dual", "primal"])
def test_gradients_of_a_batch_with_shared_and_void_weights(gradient: str, value: str) -> None:
    costs = torch.stack([problem(5, 7, seed)[0] for seed in range(3)]).requires_grad_()
    a = torch.tensor([0.3, 0.0, 0.4, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    config = tight(0.1, value=value, gradient=gradient)
    together = torch.autograd.grad(solve(costs, a, None, config).value_B.sum(), (costs, a))
    alone = [torch.autograd.grad(solve(cost, a, None, config).value_B, (cost, a)) for cost in costs.unbind()]
    torch.testing.assert_close(together[0], torch.stack([cost for cost, _ in alone]), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(together[1], sum(weight for _, weight in alone), rtol=1e-6, atol=1e-9)
    assert (together[0][:, 1] == 0).all()


@pytest.mark.parametrize("epsilon", [1e-4, 1e-3])
def test_the_implicit_gradient_is_finite_where_the_plan_falls_into_pieces(epsilon: float) -> None:
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    cost = normalized(sqeuclidean(x, x + 0.01), "mean").requires_grad_()
    solve(cost, None, None, Config(epsilon=epsilon, value="primal", gradient="implicit")).value_B.backward()
    assert cost.grad is not None
    torch.testing.assert_close(cost.grad, torch.eye(9) / 9, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("check_every", [1, 2, 3, 10])
def test_any_rhythm_converges(check_every: int) -> None:
    """Without Newton steps the slower ones would take thousands of iterations."""
    result = solve(*problem(), tight(0.01, check_every=check_every, max_iters=300))
    assert result.converged_B


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
    """Far outside the range that one exponential covers."""
    cost, a, b = problem()
    result = solve(cost.float() * scale, a, b, Config(epsilon=0.05, max_iters=60))
    assert result.value_B.isfinite()
    assert result.converged_B == (scale < 1)
    assert result.plan_BNM is not None
    assert result.plan_BNM.isfinite().all()


def test_epsilon_scales_with_the_cost() -> None:
    cost, a, b = problem()
    torch.testing.assert_close(
        solve(100 * cost, a, b, tight(5.0)).value_B, 100 * solve(cost, a, b, tight(0.05)).value_B
    )


def test_a_newton_step_saves_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it is no step, plain iterations remain."""
    cost, a, b = problem()
    assert solve(cost, a, b, tight(0.01, iterations=100)).converged_B
    monkeypatch.setattr(entropic_device, "CG", 0)
    plain = solve(cost, a, b, tight(0.01, iterations=100))
    assert not plain.converged_B
    assert plain.marginal_error_B < 0.1


def test_a_newton_step_is_taken_only_where_the_dual_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in a wrong direction are refused for each problem by itself, and the answer stays."""
    cost, a, b = problem()
    costs = torch.stack([cost, 2 * cost])
    truth = solve(costs, a, b, tight(0.05))
    good = entropic_device._by_conjugate_gradients

    def sabotage(matrix_BNM: Tensor, left_BN: Tensor, squared_BM: Tensor, y_BN: Tensor) -> Tensor:
        return torch.stack([-1e3 * y_BN[0], good(matrix_BNM, left_BN, squared_BM, y_BN)[1]])

    monkeypatch.setattr(entropic_device, "_by_conjugate_gradients", sabotage)
    result = solve(costs, a, b, tight(0.05, iterations=1500))
    assert result.converged_B.all()
    torch.testing.assert_close(result.plan_BNM, truth.plan_BNM, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gradient", ["envelope", "unrolled"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_given_number_of_iterations_never_waits(lead: tuple[int, ...], gradient: str, no_waiting: Any) -> None:
    cost = torch.randn(*lead, 13, 17, generator=torch.Generator().manual_seed(0)).square().requires_grad_()
    config = Config(epsilon=0.01, iterations=40, gradient=gradient)
    warm = solve(cost.detach(), None, None, config).potentials
    with no_waiting:
        result = solve(cost, None, None, config, start=warm)
        result.value_B.sum().backward()
    assert result.n_iters == 40
    assert result.converged_B.all() or gradient == "unrolled"


def test_looking_at_the_error_waits(no_waiting: Any) -> None:
    """The test above can fail."""
    with pytest.raises(AssertionError), no_waiting:
        solve(torch.rand(2, 5, 7), None, None, Config(gradient="unrolled"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lead", [(), (3,)])
def test_on_a_gpu_nothing_waits_and_a_graph_holds_it(lead: tuple[int, ...]) -> None:
    cost = torch.randn(*lead, 130, 170, generator=torch.Generator().manual_seed(0)).square().cuda().requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        value = solve(cost, None, None, Config(epsilon=0.05)).value_B.sum()
        return value, torch.autograd.grad(value, cost)[0]

    truth = solve(cost.cpu(), None, None, Config(epsilon=0.05)).value_B.sum()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = step()
    graph.replay()
    torch.testing.assert_close(value.cpu(), truth, rtol=1e-3, atol=1e-4)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("options", [{}, {"iterations": 200}])
@pytest.mark.parametrize("shape", [(100, 100), (3, 100, 100), (300, 300)])
def test_memory_is_four_matrices_and_no_history(
    shape: tuple[int, ...], options: dict[str, object], numbers: Any
) -> None:
    """Beside the cost, which is counted with them."""
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(0)).square().requires_grad_()
    with numbers:
        solve(cost, None, None, Config(epsilon=0.05, **options)).value_B.sum().backward()
    assert 2 < numbers.most / cost.numel() < 5.3


@pytest.mark.parametrize(("epsilon", "most"), [(0.05, 100), (0.01, 200), (1e-3, 300)])
def test_single_precision_goes_down_to_its_last_digits(epsilon: float, most: int) -> None:
    """Newton steps are left out only where the error is rounding."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 60, 5, generator=generator), torch.randn(8, 70, 5, generator=generator)
    result = solve(Clouds(x, y).cross, None, None, Config(epsilon=epsilon, tolerance=1e-6, max_iters=most))
    assert result.converged_B.all()


@pytest.mark.parametrize("d", [3, 64])
def test_small_epsilon_to_high_accuracy(d: int) -> None:
    """What a Newton step of few conjugate gradients cannot reach."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 64, d, generator=generator).double()
    result = solve(Clouds(x, y).cross, None, None, Config(epsilon=1e-3, tolerance=1e-9, max_iters=400))
    assert result.converged_B.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("forbidden", [1e3, 1e7, 1e9, 1e20])
@pytest.mark.parametrize("iterations", [None, 200])
def test_pairs_are_forbidden_by_a_large_cost(iterations: int | None, forbidden: float, dtype: torch.dtype) -> None:
    cost, a, b = (part.to(dtype) for part in problem())
    mask = torch.rand(13, 17, generator=torch.Generator().manual_seed(1)) < 0.3
    result = solve(cost.masked_fill(mask, forbidden), a, b, Config(tolerance=1e-5, iterations=iterations))
    arrays = a.double().numpy(), b.double().numpy(), cost.double().masked_fill(mask, 30).numpy()
    truth = torch.from_numpy(pot.sinkhorn(*arrays, 0.05, numItermax=10_000, stopThr=1e-12, warn=False))
    assert result.converged_B
    torch.testing.assert_close(result.plan_BNM.double(), truth, atol=1e-4, rtol=1e-3)


def test_the_backward_pass_may_run_inside_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 6, generator=generator).requires_grad_() for n in (13, 17))
    outside = torch.autograd.grad(transport(Clouds(x, y), None, None, Config()).value_B, (x, y))
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(transport(Clouds(x, y), None, None, Config()).value_B, (x, y))
    torch.testing.assert_close(inside, outside)


def test_the_value_may_be_changed_in_place() -> None:
    cost = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    result = solve(cost, None, None, Config())
    result.value_B.mul_(2).backward()
    torch.testing.assert_close(cost.grad, 2 * result.plan_BNM)


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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=sizes, m=sizes, epsilon=epsilons, seed=seeds, shift=st.floats(-3, 3), scale=st.floats(0.01, 100))
def test_laws_of_the_value(n: int, m: int, epsilon: float, seed: int, shift: float, scale: float) -> None:
    """V(C + s) = V(C) + s; V(rC, rε) = r V(C, ε); points in another order give the plan in that order."""
    cost, a, b = problem(n, m, seed)
    result = solve(cost, a, b, tight(epsilon))
    torch.testing.assert_close(solve(cost + shift, a, b, tight(epsilon)).value_B, result.value_B + shift)
    scaled = solve(scale * cost, a, b, tight(scale * epsilon))
    torch.testing.assert_close(scaled.value_B, scale * result.value_B, rtol=1e-6, atol=1e-9)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert result.plan_BNM is not None
    torch.testing.assert_close(solve(cost[rows], a[rows], b, tight(epsilon)).plan_BNM, result.plan_BNM[rows])


def test_the_value_tends_to_the_exact_one() -> None:
    cost, a, b = problem(31, 29)
    optimum = exact.solve(cost, a, b, exact.Config()).value_B
    gaps = [(solve(cost, a, b, tight(eps, value="primal", tolerance=1e-8)).value_B - optimum).item() for eps in TO_ZERO]
    assert gaps == sorted(gaps, reverse=True)
    assert -1e-7 < gaps[-1] < 1e-5


TO_ZERO = [1.0, 0.1, 0.01, 1e-3, 1e-4]


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("options", [{}, {"iterations": 64}, {"annealing": False, "max_iters": 60}])
def test_a_ten_thousandth_of_the_mean_cost_in_single_precision(d: int, options: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, n, d, generator=generator) for n in (61, 67))
    cost = normalized(sqeuclidean(x, y), "mean").requires_grad_()
    result = solve(cost, None, None, Config(epsilon=1e-4, value="primal", **options))
    result.value_B.sum().backward()
    assert result.plan_BNM is not None
    assert result.plan_BNM.isfinite().all()
    assert cost.grad is not None
    assert cost.grad.isfinite().all()
    error = (result.plan_BNM.sum(-1) - 1 / 61).abs().sum(-1) + (result.plan_BNM.sum(-2) - 1 / 67).abs().sum(-1)
    torch.testing.assert_close(result.marginal_error_B, error, rtol=1e-2, atol=1e-5)
    assert torch.equal(result.converged_B, result.marginal_error_B <= 1e-4)
    if not options:
        optimum = exact.solve(cost.detach(), None, None, exact.Config()).value_B
        assert result.converged_B.all()
        torch.testing.assert_close(result.value_B.detach(), optimum, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 3, 9, 80])
def test_a_number_of_iterations_is_kept_and_judged(iterations: int) -> None:
    result = solve(*problem(), tight(0.01, iterations=iterations, tolerance=1e-6))
    assert result.n_iters == iterations
    assert result.converged_B == (result.marginal_error_B <= 1e-6) == (iterations == 80)


@pytest.mark.parametrize("iterations", [1, 7])
def test_unrolled_iterations_are_pots(iterations: int) -> None:
    cost = problem()[0]
    result = solve(cost, None, None, tight(0.05, gradient="unrolled", iterations=iterations, value="primal"))
    arrays = np.full(17, 1 / 17), np.full(13, 1 / 13), cost.T.numpy()  # POT updates the second side first
    plan = pot.sinkhorn(*arrays, 0.05, method="sinkhorn_log", numItermax=iterations, stopThr=0, warn=False)
    np.testing.assert_allclose(result.plan_BNM, plan.T, rtol=1e-7)


def test_a_solved_problem_is_not_made_worse_by_one_that_takes_longer() -> None:
    easy, hard = (problem(31, 29, d=2)[0].float() * scale for scale in (1, 300))
    alone = solve(easy, None, None, Config(epsilon=0.05))
    together = solve(torch.stack([easy, hard]), None, None, Config(epsilon=0.05, max_iters=300))
    assert together.n_iters > alone.n_iters
    assert together.marginal_error_B[0] <= alone.marginal_error_B + 1e-6


def test_a_problem_that_is_not_finite_leaves_the_others_alone() -> None:
    costs = torch.stack([problem()[0]] * 3)
    alone = solve(costs[1], None, None, tight(0.05)).value_B
    costs[0, 2, 3], costs[2, 0, 0] = torch.nan, torch.inf
    result = solve(costs, None, None, tight(0.05))
    assert result.converged_B.tolist() == [False, True, False]
    torch.testing.assert_close(result.value_B[1], alone)
    assert not result.value_B[::2].isfinite().any()


@pytest.mark.parametrize("options", [{}, {"iterations": 10}, {"gradient": "unrolled", "iterations": 10}])
def test_a_start_saves_iterations(options: dict[str, object]) -> None:
    cost, a, b = problem(31, 29)
    cold = solve(cost, a, b, tight(0.01, tolerance=1e-6))
    nearby = cost * 1.001
    without = solve(nearby, a, b, tight(0.01, tolerance=1e-6, **options))
    warm = solve(nearby, a, b, tight(0.01, tolerance=1e-6, **options), start=cold.potentials)
    assert warm.marginal_error_B < without.marginal_error_B if options else warm.n_iters < cold.n_iters / 2


@pytest.mark.parametrize("epsilon", [1e-3, 0.05])
@pytest.mark.parametrize("size", [1.0, 1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"iterations": 100}, {"annealing": False}])
def test_a_bad_start_does_no_harm(size: float, epsilon: float, options: dict[str, object]) -> None:
    cost, a, b = problem()
    truth = solve(cost, a, b, tight(epsilon, tolerance=1e-6)).value_B
    f, g = size * cost[:, 0] + size, -size * cost[1]
    result = solve(cost, a, b, tight(epsilon, tolerance=1e-6, **options), start=(f, g))
    assert result.converged_B
    torch.testing.assert_close(result.value_B, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", [[(17,), (13,)], [(2, 13), (2, 17)], [(13,)]])
def test_a_start_of_another_shape_is_refused(shapes: list[tuple[int, ...]]) -> None:
    cost, a, b = problem()
    with pytest.raises(OtkdError, match=r"takes \(13,\) and \(17,\), the potentials of an earlier problem"):
        solve(cost, a, b, Config(), start=tuple(map(torch.zeros, shapes)))


def test_a_start_or_a_cost_that_is_no_tensor_is_refused() -> None:
    cost, a, b = problem()
    with pytest.raises(OtkdError, match=r"a potential to start from has to be a torch tensor, not numpy\.ndarray"):
        solve(cost, a, b, Config(), start=(torch.zeros(13), np.zeros(17)))  # type: ignore[arg-type]
    with pytest.raises(OtkdError, match=r"a cost has to be a torch tensor, not builtins\.list"):
        solve(cost.tolist(), a, b, Config())


@pytest.mark.parametrize("normalize", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(13, 17, 3), (31, 5, 40), (1, 4, 2), (150, 120, 7), (3, 2, 64, 33, 21)])
def test_the_shortcut_gives_what_the_long_way_gives(shape: tuple[int, ...], dtype: torch.dtype, normalize: str) -> None:
    """Value, plan, potentials, and the gradient in both clouds; of several problems at once too."""
    *lead, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    x, y = (3 + torch.randn(*lead, count, d, generator=generator, dtype=torch.float64).to(dtype) for count in (n, m))
    y *= torch.linspace(1, 2, len(y)).reshape(-1, *[1] * (y.dim() - 1))  # each problem has its scale
    config = Config(epsilon=0.1, tolerance=1e-9 if dtype == torch.float64 else 3e-6, max_iters=5000)
    weights = torch.linspace(1, 3, math.prod(lead)).reshape(lead)
    answers = []
    for short in (True, False):
        points = x.clone().requires_grad_(), y.clone().requires_grad_()
        clouds = Clouds(*points, normalize=normalize)
        result = shortcut(clouds, None, None, config) if short else solve(clouds.cross, None, None, config)
        assert result is not None
        answers.append((result, torch.autograd.grad((weights * result.value_B).sum(), points)))
    (short_result, short_grads), (result, grads) = answers
    close = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    torch.testing.assert_close(short_result.value_B, result.value_B, **close)
    torch.testing.assert_close(short_result.plan_BNM, result.plan_BNM, **close)
    torch.testing.assert_close(short_grads, grads, **close)
    assert short_result.converged_B.all()
    assert result.converged_B.all()
    assert short_result.potentials is not None
    assert result.potentials is not None
    constant = short_result.potentials[0][..., :1] - result.potentials[0][..., :1]  # is free
    torch.testing.assert_close(short_result.potentials[0] - constant, result.potentials[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(short_result.potentials[1] + constant, result.potentials[1], rtol=1e-3, atol=1e-3)


def test_the_shortcut_is_left_where_it_does_not_fit() -> None:
    x, y = torch.randn(5, 3), torch.randn(7, 3)
    weights = torch.full((5,), 0.2)
    assert shortcut(Clouds(x, y), None, None, Config()) is not None
    assert shortcut(Clouds(x.bfloat16(), y.bfloat16()), None, None, Config()) is not None
    for clouds, config in (
        (Clouds(x, y, "euclidean"), Config()),
        (Clouds(x, y, normalize="max"), Config()),
        (Clouds(x, y), Config(value="primal")),
        (Clouds(x, y), Config(gradient="implicit")),
        (Clouds(x, y), Config(iterations=3)),
        (Clouds(x, y), Config(annealing=False)),
        (Clouds(x, y[None]), Config()),
    ):
        assert shortcut(clouds, None, None, config) is None
    assert shortcut(Clouds(x, y), weights, None, Config()) is None


@pytest.mark.parametrize("normalize", ["mean", "none"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e20])
@pytest.mark.parametrize("side", [0, 1])
def test_the_shortcut_shows_points_that_are_not_finite(side: int, bad: float, normalize: str) -> None:
    """Or whose squares are not; one problem's do not touch the others."""
    generator = torch.Generator().manual_seed(0)
    x, y = good = [torch.randn(3, n, 3, generator=generator) for n in (5, 7)]
    truth = transport(Clouds(x, y, normalize=normalize), None, None, Config())
    broken = [part.clone() for part in good]
    broken[side][1, 2, 1] = bad
    broken[0].requires_grad_()
    result = shortcut(Clouds(*broken, normalize=normalize), None, None, Config())
    assert result is not None
    assert not result.value_B[1].isfinite()
    assert result.converged_B.tolist() == [True, False, True]
    assert torch.equal(result.value_B[[0, 2]], truth.value_B[[0, 2]])
    (grad,) = torch.autograd.grad(result.value_B[[0, 2]].sum(), broken[0], retain_graph=True)
    assert grad[[0, 2]].isfinite().all()
    (grad,) = torch.autograd.grad(result.value_B.sum(), broken[0])
    assert not grad[1].isfinite().all()


@pytest.mark.parametrize("spread", [1e-25, 1e-20, 1e-15, 1e-6, 1e6, 1e15])
def test_the_shortcut_takes_clouds_of_any_size(spread: float) -> None:
    """With a mean cost that underflows all costs count as 0."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator) for n in (13, 17))
    result = shortcut(Clouds(spread * x, spread * y), None, None, Config())
    truth = transport(Clouds(x, y), None, None, Config()).value_B
    assert result is not None
    assert result.converged_B
    torch.testing.assert_close(result.value_B, truth if spread > 1e-19 else 0 * truth, rtol=1e-4, atol=1e-6)


def test_a_cost_whose_mean_overflows_does_not_count_as_solved() -> None:
    x, y = (1e18 * torch.randn(n, 300, generator=torch.Generator().manual_seed(n)) for n in (13, 17))
    result = solve(Clouds(x, y).cross, None, None, Config())
    assert not result.converged_B
    assert not result.value_B.isfinite()


def test_the_shortcut_keeps_its_digits_far_from_the_origin() -> None:
    """Thousands of points, whose sum in single precision has lost theirs."""
    generator = torch.Generator().manual_seed(0)
    x, y = (1000 + torch.randn(n, 8, generator=generator) for n in (64, 8192))
    x.requires_grad_()
    single = shortcut(Clouds(x, y), None, None, Config())
    double = shortcut(Clouds(x.double(), y.double()), None, None, Config(tolerance=1e-8))
    assert single is not None
    assert double is not None
    torch.testing.assert_close(single.value_B.double(), double.value_B, rtol=1e-4, atol=0.0)
    grads = [torch.autograd.grad(result.value_B, x)[0] for result in (single, double)]
    assert (grads[0] - grads[1]).norm() < 1e-3 * grads[1].norm()


def test_subnormal_weights_count_as_none() -> None:
    a = torch.tensor([1.0, *[1e-42] * 8])
    result = solve(problem(9, 17)[0].float(), a, None, Config())
    assert result.converged_B
    assert result.value_B.isfinite()
    assert result.plan_BNM is not None
    assert not result.plan_BNM[1:].any()


@pytest.mark.parametrize("short", [True, False])
def test_the_gradient_is_given_once_and_of_the_plan_that_was_found(short: bool) -> None:
    """No derivative of it is known, and a plan that was changed since is noticed."""
    x, y = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (5, 7))
    x.requires_grad_()

    def found() -> TransportResult:
        clouds = Clouds(x, y)
        result = shortcut(clouds, None, None, Config()) if short else solve(clouds.cross, None, None, Config())
        assert result is not None
        return result

    (grad,) = torch.autograd.grad(found().value_B.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    result = found()
    assert result.plan_BNM is not None
    result.plan_BNM.mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.value_B.backward()


def test_strides_of_inputs_cost_no_compilation() -> None:
    cost, a, b = problem(6, 6)
    solve(cost.expand(3, 6, 6), a, b, Config())
    known = len(entropic_cpu._all.signatures)
    weights = torch.full((6, 3), 1 / 6, dtype=torch.float64).mT
    start = solve(cost.mT.expand(3, 6, 6), weights, weights, Config()).potentials
    assert start is not None
    solve(cost.mT.expand(3, 6, 6), weights, b, Config(), start=(start[0].flip(0), start[1].flip(0)))
    assert len(entropic_cpu._all.signatures) == known


@pytest.mark.parametrize("gradient", ["envelope", "implicit"])
def test_threads_and_neighbours_change_no_bit(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem's answer is its own: alone, in a batch, on one thread or on several."""
    cost, a, b = (part.expand(5, *part.shape) * torch.ones(5, *[1] * part.dim()) for part in problem(33, 47))
    cost = cost * torch.linspace(0.1, 3, 5)[:, None, None]
    config = Config(epsilon=0.02, gradient=gradient)
    alone = [solve(cost[index], a[index], b[index], config) for index in range(5)]
    monkeypatch.setattr("otkd.ot.threads.THREADED_SIZE", 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    together = solve(cost, a, b, config)
    assert together.n_iters == max(one.n_iters for one in alone)
    for index, one in enumerate(alone):
        assert torch.equal(together.plan_BNM[index], one.plan_BNM)
        assert torch.equal(together.value_B[index], one.value_B)


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 3e-7), (np.float64, 5e-16)])
def test_the_compiled_exponential(dtype: type, error: float) -> None:
    @compiled.inner
    def apply(x_N: np.ndarray) -> np.ndarray:
        y_N = np.empty_like(x_N)
        for index in range(len(x_N)):
            y_N[index] = entropic_cpu.exp(x_N[index])
        return y_N

    x_N = -np.linspace(0, entropic_cpu.DEPTH, 100_001).astype(dtype)
    truth_N = np.exp(x_N.astype(np.longdouble))
    y_N = apply(x_N)
    assert y_N.dtype == dtype
    assert y_N[0] == 1
    assert np.abs(y_N / truth_N - 1).max() < error
    assert np.isnan(apply(np.array([np.nan], dtype)))


@pytest.mark.parametrize(
    "options", [{}, {"annealing": False}, {"max_iters": 60}, {"max_iters": 20}, {"iterations": 20}]
)
@pytest.mark.parametrize("sharpness", [0.0, 3.0, 8.0])
def test_what_counts_as_converged_is_the_optimum(sharpness: float, options: dict[str, Any]) -> None:
    """The plan is a coupling, and that of its potentials: together that makes it the only solution."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(60, 21, 16, generator=generator, dtype=torch.float64)
    cost[20:40] *= torch.linspace(1, 5, 16)  # some columns are far from all rows
    cost[40:] = cost[40:].square() * 3
    weights = (sharpness * torch.randn(60, n, generator=generator, dtype=torch.float64) for n in (21, 16))
    a, b = (part.softmax(-1) for part in weights)
    for epsilon in (0.05, 0.005, 0.001):
        result = solve(cost, a, b, Config(epsilon=epsilon, **options))
        f, g = (part[result.converged_B] for part in result.potentials or ())
        plan = ((f[:, :, None] + g[:, None, :] - cost[result.converged_B]) / epsilon).exp()
        plan *= a[result.converged_B, :, None] * b[result.converged_B, None, :]
        gap = (plan - result.plan_BNM[result.converged_B]).abs().sum((-2, -1))
        assert len(gap) > 55 or options
        assert (gap < 2e-4).all(), (epsilon, gap.max())


def test_a_newton_step_downwards_is_refused() -> None:
    """Called by itself, as its caller goes on silently either way."""
    generator = np.random.default_rng(0)
    kernel_NM = np.exp(-generator.random((13, 17)))
    a_N, b_M = np.full(13, 1 / 13), np.full(17, 1 / 17)
    t_N = a_N * generator.random(13)
    z_M = kernel_NM.T @ t_N
    state = [t_N, z_M, b_M / z_M]
    before = [part.copy() for part in state]
    dual = a_N * (1 - kernel_NM @ state[2] * t_N / a_N)  # its gradient in the rows' potentials
    assert not entropic_cpu._rises(-0.1 * dual, kernel_NM, a_N, b_M, *state)
    assert all((new == old).all() for new, old in zip(state, before, strict=True))
    assert entropic_cpu._rises(0.1 * dual, kernel_NM, a_N, b_M, *state)
    np.testing.assert_allclose(state[1], kernel_NM.T @ state[0])
    np.testing.assert_allclose(state[2] * state[1], b_M)
    assert (state[0] != before[0]).any()
