"""The other packages, each as a callable from a problem and a setting to a value and, where it has one, a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import ot as pot
import torch
from ot.batch import solve_batch, solve_sample_batch
from ot.bregman import empirical_sinkhorn_divergence
from ot.gaussian import empirical_bures_wasserstein_distance
from torch import Tensor

from benchmarks.transport.ours import projections
from benchmarks.transport.problems import Answer, Problem, Setting, each


def stop_at(setting: Setting, problem: Problem) -> float:
    """POT's threshold: the L2 error of one marginal that keeps its L1 error in the tolerance."""
    return (setting.tolerance or 0.0) / math.sqrt(problem.b_BN.shape[-1])


def pot_sinkhorn2(problem: Problem, setting: Setting, *, method: str, numpy: bool = False) -> Answer:
    options = {"method": method, "numItermax": setting.iters, "stopThr": stop_at(setting, problem)}

    def run(solve: Callable[..., Any]) -> Tensor:
        return each(
            problem, lambda cost, a, b: solve(a, b, cost, setting.epsilon, **options), problem.cost, numpy=numpy
        )

    return Answer(run(pot.sinkhorn2), lambda: run(pot.sinkhorn))


def pot_solve_sample(problem: Problem, setting: Setting) -> Answer:
    plans: list[Tensor] = []
    options: dict[str, Any] = {"reg": setting.epsilon}
    if setting.epsilon is not None:
        options |= {"max_iter": setting.iters, "tol": stop_at(setting, problem), "grad": "envelope"}

    def one(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        result = pot.solve_sample(x, y, a, b, **options)
        plans.append(result.plan)
        value: Tensor = result.value
        return value

    value_B = each(problem, one, *problem.points)
    return Answer(value_B, lambda: torch.stack(plans).reshape((*problem.lead, *plans[0].shape)))


def pot_batch(problem: Problem, setting: Setting, *, method: str) -> Answer:
    a, b = (part.reshape(-1, part.shape[-1]) for part in (problem.a_BN, problem.b_BN))
    options = {"method": method, "max_iter": setting.iters, "tol": stop_at(setting, problem), "grad": "envelope"}
    if problem.shared:
        result = solve_batch(problem.cost, setting.epsilon, a, b, **options)
    else:
        x, y = (part.reshape(-1, *part.shape[-2:]) for part in problem.points)
        result = solve_sample_batch(x, y, setting.epsilon, a, b, **options)
    value_B = result.value.reshape(problem.lead)
    return Answer(value_B, lambda: result.plan.reshape((*problem.lead, *result.plan.shape[-2:])))


def pot_divergence(problem: Problem, setting: Setting, *, numpy: bool = False) -> Answer:
    options = {"numIterMax": setting.iters, "stopThr": stop_at(setting, problem), "warn": False}

    def one(x: Any, y: Any, a: Any, b: Any) -> Any:
        return empirical_sinkhorn_divergence(x, y, setting.epsilon, a, b, **options)

    return Answer(each(problem, one, *problem.points, numpy=numpy))


def pot_emd2(problem: Problem, setting: Setting, *, numpy: bool = False) -> Answer:
    def run(solve: Callable[..., Any]) -> Tensor:
        return each(problem, lambda cost, a, b: solve(a, b, cost), problem.cost, numpy=numpy)

    return Answer(run(pot.emd2), lambda: run(pot.emd))


def pot_sliced(problem: Problem, setting: Setting, *, numpy: bool = False) -> Answer:
    """As many directions as otkd takes by default; POT returns the root of the mean."""
    count = projections()

    def one(x: Any, y: Any, a: Any, b: Any) -> Any:
        return pot.sliced_wasserstein_distance(x, y, a, b, n_projections=count, seed=0) ** 2

    return Answer(each(problem, one, *problem.points, numpy=numpy))


def pot_gaussian(problem: Problem, setting: Setting, *, numpy: bool = False) -> Answer:
    """Means and covariances of the points, then `ot.gaussian.bures_wasserstein_distance`, squared."""

    def one(x: Any, y: Any, a: Any, b: Any) -> Any:
        return empirical_bures_wasserstein_distance(x, y, ws=a[:, None], wt=b[:, None]) ** 2

    return Answer(each(problem, one, *problem.points, numpy=numpy))


def samples_loss(problem: Problem, losses: Callable[..., Any], scale: float, epsilon: float, debias: bool) -> Answer:
    """What geomloss and flash-sinkhorn have in common; `scale` turns their cost into ours."""
    x_BND, y_BND = (part.contiguous() for part in problem.points)
    points = (problem.a_BN, x_BND, problem.b_BN, y_BND)

    def plan() -> Tensor:
        f_BN, g_BN = losses(debias=False, potentials=True)(*points)
        exponent = scale * (f_BN[..., :, None] + g_BN[..., None, :]) - problem.cost
        return problem.a_BN[..., :, None] * problem.b_BN[..., None, :] * torch.exp(exponent / epsilon)

    return Answer(scale * losses(debias=debias)(*points), plan)


def geomloss(problem: Problem, setting: Setting, *, debias: bool) -> Answer:
    """Its cost is |x − y|²/2, so ε is halved; it takes two iterations more than its annealing has factors."""
    assert setting.epsilon is not None
    assert setting.iters is not None
    blur = math.sqrt(setting.epsilon / 2)
    scaling = (blur / problem.diameter) ** (1 / max(setting.iters - 2, 1))
    losses = partial(
        import_module("geomloss").SamplesLoss, "sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized"
    )
    return samples_loss(problem, losses, 2.0, setting.epsilon, debias)


def flash_sinkhorn(problem: Problem, setting: Setting, *, debias: bool, backend: str) -> Answer:
    assert setting.epsilon is not None
    losses = partial(
        import_module("flash_sinkhorn").SamplesLoss,
        backend=backend,
        use_epsilon_scaling=False,
        eps=setting.epsilon,
        n_iters=setting.iters,
        allow_tf32=False,
    )
    return samples_loss(problem, losses, 1.0, setting.epsilon, debias)
