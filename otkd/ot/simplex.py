"""POT's network simplex over a batch of problems: on the CPU, in float64, on as many threads as torch may use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otkd.ot.cost import positive
from otkd.ot.problem import Problem

THREADED_SIZE = 2**17
"""Entries of all cost matrices from which on threads pay: to start them takes as long as a few problems of 64 × 64."""


class Vertices(NamedTuple):
    """One optimal vertex of the transport polytope per problem, in the problems' dtype and on their device."""

    plan_BNM: Tensor
    f_BN: Tensor
    g_BM: Tensor
    """Dual potentials with a·f = b·g; those of points without weight are feasible."""
    optimal_B: Tensor
    """Whether POT found the optimum."""


def vertices(problem: Problem, max_iters: int) -> Vertices:
    """Solve each problem within `max_iters` pivots; NaN and not optimal where the cost is not finite.

    Costs are moved into [0, 1] first: POT finds negative ones infeasible and takes gains below about 1e-13 for none.
    """
    cost_BNM, a_BN, b_BM = (part.double().cpu() for part in problem)
    low_B11, high_B11 = (bound((-2, -1), keepdim=True) for bound in (cost_BNM.amin, cost_BNM.amax))
    span_B11 = positive(high_B11 - low_B11)
    arrays = [part.numpy() for part in ((cost_BNM - low_B11).div_(span_B11), a_BN, b_BM)]
    answers = [torch.full_like(part, torch.nan) for part in (cost_BNM, a_BN, b_BM)]
    outputs = [answer.numpy() for answer in answers]
    finite = (high_B11 - low_B11).isfinite().flatten().tolist()

    def work(index: int) -> bool:
        return finite[index] and _pivot([part[index] for part in arrays], [out[index] for out in outputs], max_iters)

    optimal_B = torch.tensor(_each(work, len(finite), cost_BNM.numel()))
    f_BN, g_BM = answers[1] * span_B11[:, 0] + low_B11[:, 0], answers[2] * span_B11[:, 0]
    shift_B1 = ((b_BM * g_BM).sum(-1, keepdim=True) - (a_BN * f_BN).sum(-1, keepdim=True)) / 2
    plan_BNM, f_BN, g_BM = (part.to(problem.cost_BNM) for part in (answers[0], f_BN + shift_B1, g_BM - shift_B1))
    return Vertices(plan_BNM, f_BN, g_BM, optimal_B.to(plan_BNM.device))


def _each(work: Callable[[int], bool], count: int, size: int) -> list[bool]:
    """`work` for every index, in order; the threads end with the call, so that a later fork finds none."""
    threads = min(count, torch.get_num_threads())
    with warnings.catch_warnings():  # around the threads: what it sets is the whole process's
        warnings.simplefilter("ignore")  # what POT warns of is in the result
        if threads == 1 or size < THREADED_SIZE:
            return [work(index) for index in range(count)]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, range(count)))


def _pivot(arrays: list[Any], outputs: list[Any], max_iters: int) -> bool:
    """Write the plan and both potentials of one problem (cost, a, b) to `outputs`; whether they are optimal."""
    import ot as pot  # POT; importing it takes seconds

    cost_NM, a_N, b_M = arrays
    options = {"numItermax": max_iters, "center_dual": False, "check_marginals": False}  # both are done here, batched
    plan_NM, log = pot.emd(a_N, b_M, cost_NM, log=True, **options)
    outputs[0][:], outputs[1][:], outputs[2][:] = plan_NM, log["u"], log["v"]
    return log["warning"] is None
