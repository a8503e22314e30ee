"""otkd's own solvers, called as training calls them."""

from __future__ import annotations

from functools import cache

from benchmarks.transport.problems import Answer, Problem, Setting
from otkd.core import plugins
from otkd.core.config import SolverConfig
from otkd.ot.clouds import Clouds, transport

UNREACHABLE = 1e-30
"""Tolerance of a solver that shall use up its iterations."""


@cache
def configured(name: str, setting: Setting) -> SolverConfig:
    """A solver's defaults with those of the settings that it knows."""
    tolerance = UNREACHABLE if setting.fixed else setting.tolerance
    asked = {"epsilon": setting.epsilon, "tolerance": tolerance, "max_iters": setting.iters}
    fields = plugins.head("ot", name).Config.model_fields
    config: SolverConfig = plugins.configure(
        "ot", name, {key: value for key, value in asked.items() if value is not None and key in fields}
    )
    return config


def otkd(problem: Problem, setting: Setting, *, name: str) -> Answer:
    config = configured(name, setting)
    a_BN, b_BN = (problem.a_BN, problem.b_BN) if problem.weighted else (None, None)
    if problem.shared and config.takes == "cost":
        cost = Clouds(problem.x_BND, problem.y_BND).cross
        cost = cost.expand(*problem.lead, *cost.shape[-2:])
        result = plugins.load("ot", name).solve(cost, a_BN, b_BN, config)
    else:
        result = transport(Clouds(*problem.points), a_BN, b_BN, config)
    plan = result.plan_BNM
    return Answer(result.value_B, None if plan is None else lambda: plan)


def projections() -> int:
    """How many directions `sliced` takes by default."""
    fields = configured("sliced", Setting()).model_dump()
    return next((value for key, value in fields.items() if "projections" in key), 50)
