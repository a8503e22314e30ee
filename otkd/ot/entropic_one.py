"""The algorithm of `otkd.ot.entropic` for one problem on the CPU, where calls cost more than arithmetic.

Vectors are numpy arrays, whose operations start three times faster than torch's; matrices are made by torch, whose
exponential is the faster one, and looked at through numpy on the same memory. LAPACK is called directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import get_lapack_funcs
from torch import Tensor

from otkd.ot import entropic_rules as rules
from otkd.ot.entropic_rules import Pace, Settings, Solution
from otkd.ot.problem import Problem

THREADED = 9216
"""Entries of a matrix from which on OpenBLAS multiplies it in several threads."""

Array = Any  # a numpy array of the problem's precision


def until(
    problem: Problem, settings: Settings, g_M: Array | None, epsilon: float, lowest: float, highest: float
) -> Solution:
    """Iterate until the error is within tolerance, with at most `check_every` iterations between two looks."""
    one = _One(problem, g_M)
    target, most, block = settings.epsilon, settings.max_iters, settings.check_every
    epsilon = max(min(epsilon, target * rules.ANNEALING ** min(most // (2 * block), 40)), target)
    with np.errstate(all="ignore"):
        one.absorb(epsilon, lowest, highest)
        pace = Pace(settings.tolerance, rules.newton_price(len(one.a_N)))
        n_iters, age = 1, 1 if highest - lowest <= rules.DEPTH * epsilon else rules.AGE
        while n_iters < most and (epsilon > target or pace.error > settings.tolerance):
            cooler = rules.cooler(epsilon, target, pace.error, 2 * n_iters >= most)
            if cooler != epsilon or age >= rules.AGE:
                epsilon = cooler
                one.absorb(epsilon, lowest, highest)
                pace.restart()
                n_iters, age = n_iters + 1, 1
            else:
                steps, newton = pace.plan(min(block, most - n_iters))
                one.advance(steps, newton)
                pace.look(one.error(), steps, newton)
                n_iters, age = n_iters + steps, age + steps
        return one.solution(n_iters)


class _One:
    """The kernel K = exp((f₀ + g₀ − C)/ε) and its scalings t, z = Kᵀ t, w = b / z and s = K w."""

    def __init__(self, problem: Problem, g_M: Array | None) -> None:
        self.cost_NM = problem.cost_BNM[0]
        self.a_N, self.b_M = problem.a_BN[0].numpy(), problem.b_BM[0].numpy()
        self.flat = g_M is None
        self.g_M: Array = np.zeros_like(self.b_M) if g_M is None else g_M
        self.f_N: Array = 0.0
        self.matrix_NM = torch.empty_like(self.cost_NM)
        self.kernel_NM: Array = self.matrix_NM.numpy()
        self.to_rows, self.to_columns = _product(self.matrix_NM), _product(self.matrix_NM.mT)
        self.t_N, self.s_N = np.empty_like(self.a_N), np.empty_like(self.a_N)
        self.w_M, self.z_M = np.empty_like(self.b_M), np.ones_like(self.b_M)
        self.epsilon = math.nan

    def absorb(self, epsilon: float, lowest: float, highest: float) -> None:
        """Take the potential g into the kernel where it has gone far or ε is another; and iterate once."""
        if epsilon != self.epsilon or np.abs(np.log(self.z_M)).max() > rules.FAR:
            first = math.isnan(self.epsilon)
            if not first:
                self.g_M = self._column_potential()
                self.z_M.fill(1)
            self.epsilon = epsilon
            if first and self.flat and highest - lowest <= rules.DEPTH * epsilon:  # fewer passes do
                torch.sub(lowest, self.cost_NM, out=self.matrix_NM).mul_(1 / epsilon).exp_()
                self.f_N = lowest
            else:
                matrix_NM = torch.sub(torch.from_numpy(self.g_M), self.cost_NM, out=self.matrix_NM)
                top_N1 = matrix_NM.amax(-1, keepdim=True)
                matrix_NM.sub_(top_N1).mul_(1 / epsilon).clamp_(min=-rules.DEPTH).exp_()
                self.f_N = -top_N1[:, 0].numpy()
        np.divide(self.b_M, self.z_M, self.w_M)
        self.to_rows(self.w_M, self.s_N)
        self.advance(1, False)

    def advance(self, steps: int, newton: bool) -> None:
        """`steps` iterations, the first of them with a Newton step for the rows where that is the better one."""
        if newton:
            self._newton()
        a_N, b_M, t_N, z_M, w_M, s_N = self.a_N, self.b_M, self.t_N, self.z_M, self.w_M, self.s_N
        for _ in range(steps - newton):
            np.divide(a_N, s_N, t_N)
            self.to_columns(t_N, z_M)
            np.divide(b_M, z_M, w_M)
            self.to_rows(w_M, s_N)

    def error(self) -> float:
        """The rows' L1 error; the columns are exact. A problem that is not finite counts as solved."""
        error = self._error()
        return error if math.isfinite(error) else 0.0

    def _error(self) -> float:
        miss_N = self.t_N * self.s_N
        miss_N -= self.a_N
        return float(np.add.reduce(np.abs(miss_N, miss_N)))

    def solution(self, n_iters: int) -> Solution:
        """Potentials, plan and values; the kernel's memory becomes the plan's."""
        u_N = self.t_N / self.a_N
        if not self.a_N.all():
            u_N = np.where(self.a_N > 0, u_N, 1 / self.s_N)
        f_N, g_M = self.f_N + self.epsilon * np.log(u_N), self._column_potential()
        dual = np.dot(self.a_N, f_N) + np.dot(self.b_M, g_M)
        self.matrix_NM.mul_(torch.from_numpy(self.w_M)).mul_(torch.from_numpy(self.t_N[:, None]))
        f_BN, g_BM, numbers = map(
            torch.from_numpy, (f_N[None], g_M[None], np.array([[self._error()], [dual]], f_N.dtype))
        )
        return Solution(f_BN, g_BM, self.matrix_NM[None], numbers[0], numbers[1], n_iters)

    def _column_potential(self) -> Array:
        return self.g_M - self.epsilon * np.log(self.z_M)

    def _newton(self) -> None:
        """A Newton step, cut off or else shortened, where the dual rises; see `otkd.ot.entropic_batch`."""
        r_N = self.t_N * self.s_N
        root_N = np.sqrt(r_N)
        safe_N = np.maximum(root_N, np.finfo(root_N.dtype).tiny)
        left_N, right_M = np.sqrt(self.t_N / self.s_N), np.sqrt(self.b_M) / self.z_M
        solve = self._by_cholesky if len(r_N) <= rules.DIRECT else self._by_conjugate_gradients
        full_N = solve(left_N, right_M, root_N, (self.a_N - r_N) / safe_N) / safe_N
        longest = float(np.abs(full_N).max())
        if not self._try(np.clip(full_N, -rules.NEWTON_STEP, rules.NEWTON_STEP)) and longest > rules.NEWTON_STEP:
            self._try(full_N * (rules.NEWTON_STEP / longest))

    def _try(self, step_N: Array) -> bool:
        t_N = self.t_N * np.exp(step_N)
        z_M = self.to_columns(t_N, np.empty_like(self.z_M))
        if not np.dot(self.a_N, step_N) + np.dot(self.b_M, np.log(self.z_M / z_M)) > 0:
            return False
        self.t_N, self.z_M, self.w_M = t_N, z_M, self.b_M / z_M
        self.to_rows(self.w_M, self.s_N)
        return True

    def _by_cholesky(self, left_N: Array, right_M: Array, root_N: Array, y_N: Array) -> Array:
        scaled_NM = self.kernel_NM * left_N[:, None]
        scaled_NM *= right_M
        matrix_NN = np.dot(scaled_NM, scaled_NM.T)
        np.subtract(np.multiply.outer(root_N, root_N), matrix_NN, out=matrix_NN)
        matrix_NN.reshape(-1)[:: len(y_N) + 1] += 1 + 10 * np.finfo(y_N.dtype).eps
        factor, solve = get_lapack_funcs(("potrf", "potrs"), dtype=y_N.dtype)
        factor_NN, _ = factor(matrix_NN.T, lower=1, clean=0, overwrite_a=1)
        return solve(factor_NN, y_N, lower=1)[0]

    def _by_conjugate_gradients(self, left_N: Array, right_M: Array, _: Array, y_N: Array) -> Array:
        squared_M, image_N, image_M = right_M * right_M, np.empty_like(y_N), np.empty_like(right_M)
        x_N, rest_N, way_N = np.zeros_like(y_N), y_N, y_N
        size = first = float(np.dot(y_N, y_N))
        for _step in range(rules.CG):
            self.to_rows(self.to_columns(left_N * way_N, image_M) * squared_M, image_N)
            image_N = way_N - left_N * image_N
            stride = size / max(float(np.dot(way_N, image_N)), 1e-37)
            x_N = x_N + stride * way_N
            rest_N = rest_N - stride * image_N
            before, size = size, float(np.dot(rest_N, rest_N))
            if not size > rules.CG_TOLERANCE * first:
                break
            way_N = rest_N + (size / before) * way_N
        return x_N


def _product(matrix_NM: Tensor) -> Callable[[Array, Array], Array]:
    """The product of a matrix, whose entries may change, with a vector, written to the second argument.

    numpy starts sooner; from the size on at which its BLAS takes threads of its own, torch's number of threads rules.
    """
    if matrix_NM.numel() < THREADED:
        return partial(np.dot, matrix_NM.numpy())

    def product(vector_M: Array, out_N: Array) -> Array:
        torch.mv(matrix_NM, torch.from_numpy(vector_M), out=torch.from_numpy(out_N))
        return out_N

    return product
