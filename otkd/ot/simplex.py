"""POT's network simplex over a batch of problems: on the CPU, in float64, on as many threads as torch may use.

Each problem is widened to float64 by itself, when its turn comes. POT takes memory of its own while it works on it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from otkd.ot.problem import Problem
from otkd.ot.threads import each

UNIT = 1e-3
"""Costs from 0 up to a largest one between this and its inverse are left as they are."""

Array = Any
"""Of numpy, in float64 where nothing else is said."""


class Vertices(NamedTuple):
    """One optimal vertex of the transport polytope per problem, in the problems' dtype and on their device."""

    plan_BNM: Tensor
    f_BN: Tensor
    g_BM: Tensor
    """Dual potentials with a·f = b·g; those of points without weight are feasible."""
    optimal_B: Tensor
    """Whether POT found the optimum."""


def vertices(problem: Problem, max_iters: int, left: float = 0.0) -> Vertices:
    """Solve each problem within `max_iters` pivots; NaN and not optimal where the cost is not finite.

    Args:
        problem: costs and marginals.
        max_iters: pivots per problem.
        left: how much of either marginal may stay where it is, at no cost; the potentials mean nothing then.
    """
    host = [part.cpu() for part in problem]
    given = [part.numpy() for part in host]
    answers = [torch.full_like(part, torch.nan) for part in host]
    outputs = [answer.numpy() for answer in answers]

    def work(index: int) -> bool:
        cost_NM, a_N, b_M = (part[index] for part in given)
        found = vertex(cost_NM, a_N, b_M, max_iters, left)
        if found is None:
            return False
        *arrays, optimal = found
        for output, array in zip(outputs, arrays, strict=True):
            output[index] = array
        return bool(optimal)

    with silent():
        optimal_B = torch.tensor(each(work, len(host[0]), host[0].numel()))
    plan_BNM, f_BN, g_BM = (part.to(problem.cost_BNM.device) for part in answers)
    return Vertices(plan_BNM, f_BN, g_BM, optimal_B.to(plan_BNM.device))


@contextmanager
def silent() -> Iterator[None]:
    """No warnings of POT's: they are in its results. Around threads, for what this sets is the whole process's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def vertex(
    cost_NM: Array, a_N: Array, b_M: Array, max_iters: int, left: float = 0.0
) -> tuple[Array, Array, Array, bool] | None:
    """Plan, both potentials and whether they are optimal, for one problem of any precision; None if it is not finite.

    Costs that are negative or far from 1 are moved into [0, 1] first: POT finds negative ones infeasible, and takes
    gains below about 1e-13 for none.
    """
    import ot as pot  # POT; importing it takes seconds

    (n, m), low, high = cost_NM.shape, float(cost_NM.min()), float(cost_NM.max())
    if not math.isfinite(high - low):
        return None
    origin, unit = (0.0, 1.0) if low >= 0 and UNIT <= high <= 1 / UNIT else (low, high - low or 1.0)
    a_N, b_M = (np.append(part, left).astype(float) if left else part.astype(float) for part in (a_N, b_M))
    unit_NM = np.zeros((len(a_N), len(b_M)))
    np.subtract(cost_NM, origin, out=unit_NM[:n, :m], dtype=float)
    if unit != 1:
        unit_NM /= unit
    if left:
        unit_NM[n, m] = (high - origin) / unit
    options = {"numItermax": max_iters, "center_dual": False, "check_marginals": False}  # both are done elsewhere
    plan_NM, log = pot.emd(a_N, b_M, unit_NM, log=True, **options)
    f_N, g_M = unit * log["u"] + origin, unit * log["v"]
    shift = (b_M @ g_M - a_N @ f_N) / 2
    return plan_NM[:n, :m], f_N[:n] + shift, g_M[:m] - shift, log["warning"] is None
