"""The algorithm of `otkd.ot.entropic` on the CPU, compiled, one problem of the batch after the other.

At the size of a mini-batch the start of a call takes as long as its arithmetic, so here all problems are one call. The
kernel is read once per iteration: a row's scaling t = a / (K w) needs that row alone, and what it adds to Kᵀ t is added
while the row is at hand. The error before the iteration comes with it for nothing.

Everything is computed in the problem's own precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from otkd.ot.compiled import PLAIN, Array, inner, outer
from otkd.ot.entropic_rules import Settings, Solution
from otkd.ot.problem import Problem
from otkd.ot.threads import spans

LANES = 16
"""Numbers of a row that are compared at once."""

# Thresholds lie here, the other driver's too: machine code holds them, and is kept until this file changes.
ANNEALING = 4.0
STEEP = 100.0
"""Costs' range in units of ε from which on ε-scaling pays."""
GENTLE = 50.0
"""The same range at the first ε of ε-scaling."""
SETTLED = 0.01
"""Marginal error at which ε-scaling goes on to the next ε."""
DEPTH = 60.0
"""Natural logarithm of the range that the kernel keeps below each row's maximum; single precision has 87."""
LIFTED = 1.001 * math.exp(-DEPTH)
"""Entries of the kernel up to this one were lifted; the plan has 0 there."""
AGE = 40
"""Iterations after which potentials that have gone far are absorbed again."""
FAR = 20.0
"""How far that is, in units of ε. One that has not is left: in single precision each absorption rounds ε = 1e-4 of the
cost to a kernel that is off by a thousandth, and a solved problem would have to be solved again."""
NEWTON_STEP = 3.0
"""The farthest that a Newton step may move a potential, in units of ε."""
PRICE = 25.0
"""What a Newton step costs, in iterations, as measured."""
NOISE = 4.0
"""Marginal error, in units of the last digit, under which it is mostly rounding: no Newton step is taken."""
CG = 20
"""The most conjugate gradients of a Newton step."""
CG_LATER = 320
"""What that grows to, twofold each time that a step has left more than `LITTLE` of the error; only on the CPU."""
LITTLE = 0.6
CLOSE = 1e-4
"""Marginal error from which on it grows. Before, more of them do not pay for themselves."""
CG_TOLERANCE = 1e-4
"""Squared relative residual at which they stop."""

Cost = tuple[Array, float]
"""A matrix and its factor."""
Stops = tuple[float, float, int, int]
"""ε, tolerance, the most iterations, and the most between two decisions how to go on."""


class Parts(NamedTuple):
    """Problems as arrays, with costs factor · matrix + row + column. The plan does not depend on the last two."""

    matrix_BNM: Array
    factor_B: Array
    row_BN: Array
    column_BM: Array
    a_BN: Array
    b_BM: Array
    g_BM: Array
    """Where to start; overwritten."""
    annealed_B: Array
    """Which problems may come from a larger ε."""


def until(problem: Problem, settings: Settings, g_BM: Tensor, annealed_B: Tensor) -> Solution:
    """Iterate each problem on the CPU until its error is within tolerance; see `Parts`."""
    cost_BNM, a_BN, b_BM, g, annealed = (part.numpy() for part in (*problem, g_BM, annealed_B))
    ones_B, row_BN, column_BM = np.ones_like(a_BN[:, 0]), np.zeros_like(a_BN), np.zeros_like(b_BM)
    return solve(Parts(cost_BNM, ones_B, row_BN, column_BM, a_BN, b_BM, g, annealed), settings, annealed.shape)


def solve(parts: Parts, settings: Settings, lead: tuple[int, ...]) -> Solution:
    """`until` for costs in parts; the solution has the leading dimensions `lead` in place of their number B."""
    stops = settings.epsilon, settings.tolerance, settings.max_iters, max(settings.check_every, 2)
    f_BN, plan_BNM, error_B, dual_B = map(np.empty_like, (parts.a_BN, parts.matrix_BNM, *2 * [parts.factor_B]))
    arrays = *parts, f_BN, plan_BNM, error_B, dual_B
    counts = spans(lambda some: _all(*[array[some] for array in arrays], stops), len(f_BN), plan_BNM.size)
    answers = f_BN, parts.g_BM, plan_BNM, error_B, dual_B
    f, g, plan, error, dual = (torch.from_numpy(answer.reshape((*lead, *answer.shape[1:]))) for answer in answers)
    return Solution(f, g, plan, error, dual, max(counts))


def self_scalings(kernel_BNN: Tensor, a_BN: Tensor, settings: Settings) -> tuple[Tensor, Tensor, int]:
    """u with u K (a u) = 1 to within the tolerance, for symmetric kernels; K (a u); and the most iterations."""
    u_BN, s_BN = torch.ones_like(a_BN), torch.empty_like(a_BN)
    arrays = [part.numpy() for part in (kernel_BNN, a_BN, u_BN, s_BN)]
    limits = settings.tolerance, settings.max_iters
    counts = spans(lambda some: _all_selves(*[array[some] for array in arrays], *limits), len(a_BN), kernel_BNN.numel())
    return u_BN, s_BN, max(counts)


@outer
def _all_selves(kernel_BNN: Array, a_BN: Array, u_BN: Array, s_BN: Array, tolerance: float, most: int) -> int:
    """Averaged iterations, u ← √(u / K (a u)); the error is that of rows and columns."""
    longest = 0
    for p in range(len(a_BN)):
        a_N, u_N, s_N = a_BN[p], u_BN[p], s_BN[p]
        for n_iters in range(most + 1):
            s_N[:] = _to_rows(kernel_BNN[p], a_N * u_N)
            if n_iters == most or not 2 * np.sum(a_N * np.abs(u_N * s_N - 1)) > tolerance:
                break
            u_N[:] = np.sqrt(u_N) / np.sqrt(s_N)  # u / s may overflow where a point without weight is far away
        longest = max(longest, n_iters)
    return longest


@outer
def _all(
    matrix_BNM: Array,
    factor_B: Array,
    row_BN: Array,
    column_BM: Array,
    a_BN: Array,
    b_BM: Array,
    g_BM: Array,
    annealed_B: Array,
    f_BN: Array,
    plan_BNM: Array,
    error_B: Array,
    dual_B: Array,
    stops: Stops,
) -> int:
    """Fill f, the plan, the rows' error and the dual value; gives the most iterations of a problem."""
    most = 0
    for p in range(len(matrix_BNM)):
        cost, a_N, b_M, f_N, g_M = (matrix_BNM[p], factor_B[p]), a_BN[p], b_BM[p], f_BN[p], g_BM[p]
        g_M -= column_BM[p]
        n_iters, error_B[p] = _one(cost, a_N, b_M, f_N, g_M, plan_BNM[p], annealed_B[p], stops)
        f_N += row_BN[p]
        g_M += column_BM[p]
        dual_B[p] = np.sum(a_N * f_N) + np.sum(b_M * g_M)
        error_B[p] += 0 * dual_B[p]  # whatever is not finite shows in both
        dual_B[p] += 0 * error_B[p]
        most = max(most, n_iters)
    return most


@inner
def _one(
    cost: Cost, a_N: Array, b_M: Array, f_N: Array, g_M: Array, kernel_NM: Array, annealed: bool, stops: Stops
) -> tuple[int, float]:
    """One problem: iterations and error. The kernel's memory becomes the plan's."""
    target, tolerance, most, block = stops
    steep = _range(cost, g_M)
    epsilon = target
    if annealed and STEEP * target < steep < target / np.finfo(kernel_NM.dtype).eps:  # beyond, ε is lost in potentials
        epsilon = max(min(steep / GENTLE, target * ANNEALING ** min(most // (2 * block), 40)), target)
    t_N, z_M, w_M = np.empty_like(a_N), np.ones_like(b_M), b_M.copy()
    _absorb(cost, epsilon, a_N, b_M, f_N, g_M, kernel_NM, t_N, z_M, w_M)
    n_iters, age, error, rate = 1, 1 if steep <= DEPTH * epsilon else AGE, 1.0, math.nan
    cg = CG
    noise = NOISE * np.finfo(kernel_NM.dtype).eps
    while n_iters < most and (epsilon > target or error > tolerance or _is_lifted(kernel_NM, t_N, z_M, w_M, tolerance)):
        limit = tolerance if epsilon == target else SETTLED
        cooler = _cooler(epsilon, target, error, 2 * n_iters >= most)
        if cooler != epsilon or age >= AGE or not error > limit:
            if cooler != epsilon or _has_gone_far(z_M):
                _carry(epsilon, g_M, z_M)
                epsilon = cooler
                _absorb(cost, epsilon, a_N, b_M, f_N, g_M, kernel_NM, t_N, z_M, w_M)
                error = 1.0
            else:
                error = _iterate(kernel_NM, a_N, b_M, t_N, z_M, w_M)
            n_iters, age, rate = n_iters + 1, 1, math.nan
        else:
            steps = min(block, most - n_iters)
            newton = steps > 1 and _pays(error, rate, tolerance, noise)
            if newton:
                _newton(kernel_NM, a_N, b_M, t_N, z_M, w_M, cg)
            count, previous, before = int(newton), math.nan, error
            while count < steps and error > limit:
                previous, error = error, _iterate(kernel_NM, a_N, b_M, t_N, z_M, w_M)
                count += 1
            if newton and error > LITTLE * before:
                cg = min(2 * cg, CG_LATER) if error < CLOSE else CG
            elif age + count > 2 and not newton:
                rate = math.log(max(error, 1e-30) / previous)
            n_iters, age = n_iters + count, age + count
    error = _finish(epsilon, a_N, f_N, g_M, kernel_NM, t_N, z_M, w_M)
    return n_iters, error + 0 * steep  # NaN where a cost is not finite


@inner
def _range(cost: Cost, g_M: Array) -> float:
    """How far g − C reaches; NaN where a number is not finite."""
    matrix_NM, factor = cost
    low_L = np.full(LANES, g_M[0] - factor * matrix_NM[0, 0])
    high_L = low_L.copy()
    poison = 0 * factor
    rest = len(g_M) % LANES
    for i in range(len(matrix_NM)):
        for j in range(rest):
            x = g_M[j] - factor * matrix_NM[i, j]
            low_L[0], high_L[0], poison = min(low_L[0], x), max(high_L[0], x), poison + 0 * x
        for j in range(rest, len(g_M), LANES):
            for k in range(LANES):
                x = g_M[j + k] - factor * matrix_NM[i, j + k]
                low_L[k] = min(low_L[k], x)
                high_L[k] = max(high_L[k], x)
                poison += 0 * x
    return high_L.max() - low_L.min() + poison


@inner
def _highest(row_M: Array, lanes_L: Array) -> float:
    """The maximum, in lanes, without which the compiler compares number by number."""
    rest = len(row_M) % LANES
    lanes_L[:] = row_M[0]
    for j in range(rest, len(row_M), LANES):
        for k in range(LANES):
            lanes_L[k] = max(lanes_L[k], row_M[j + k])
    return max(lanes_L.max(), row_M[:rest].max()) if rest else lanes_L.max()


@inner
def _cooler(epsilon: float, target: float, error: float, at_once: bool) -> float:
    """The next ε of ε-scaling."""
    if at_once:
        return target
    return epsilon if error > SETTLED else max(epsilon / ANNEALING, target)


@inner
def _has_gone_far(z_M: Array) -> bool:
    return np.abs(np.log(z_M)).max() > FAR


@inner
def _is_lifted(kernel_NM: Array, t_N: Array, z_M: Array, w_M: Array, tolerance: float) -> bool:
    """Whether what was lifted counts by now, and absorbing again would put it right."""
    if not _has_gone_far(z_M):
        return False
    lifted, mass = kernel_NM.dtype.type(LIFTED), 0.0
    for i in range(len(t_N)):
        s = kernel_NM.dtype.type(0)
        for j in range(len(w_M)):
            k = kernel_NM[i, j]
            s += k * w_M[j] if k <= lifted else 0 * k
        mass += t_N[i] * s
    return mass > tolerance


@inner
def _pays(error: float, rate: float, tolerance: float, noise: float) -> bool:
    """Whether a Newton step is better than so many plain iterations as the rate asks for."""
    if math.isnan(rate) or error < noise:
        return False
    return not rate < 0 or 2 * math.log(tolerance / error) / rate > PRICE


@inner
def _absorb(
    cost: Cost,
    epsilon: float,
    a_N: Array,
    b_M: Array,
    f_N: Array,
    g_M: Array,
    kernel_NM: Array,
    t_N: Array,
    z_M: Array,
    w_M: Array,
) -> None:
    """K = exp((f + g − C)/ε), with the f for which its rows have the maximum 1, and a first iteration on it."""
    matrix_NM, factor = cost
    real = kernel_NM.dtype.type
    slope, deepest = real(1 / epsilon), real(-DEPTH)
    lanes_L = np.empty(LANES, kernel_NM.dtype)
    w_M[:] = b_M
    z_M[:] = 0
    for i in range(len(a_N)):
        for j in range(len(b_M)):
            kernel_NM[i, j] = g_M[j] - factor * matrix_NM[i, j]
        s, top = real(0), _highest(kernel_NM[i], lanes_L)
        for j in range(len(b_M)):
            kernel_NM[i, j] = k = exp(max((kernel_NM[i, j] - top) * slope, deepest))
            s += k * w_M[j]
        f_N[i], t_N[i] = -top, a_N[i] / s
        for j in range(len(b_M)):
            z_M[j] += t_N[i] * kernel_NM[i, j]
    w_M[:] = b_M / z_M


@inner
def _iterate(kernel_NM: Array, a_N: Array, b_M: Array, t_N: Array, z_M: Array, w_M: Array) -> float:
    """One update of both scalings, t and z = Kᵀ t with w = b / z; gives the rows' L1 error before it."""
    real = kernel_NM.dtype.type
    error = real(0)
    z_M[:] = 0
    for i in range(len(a_N)):
        s = real(0)
        for j in range(len(b_M)):
            s += kernel_NM[i, j] * w_M[j]
        error += abs(t_N[i] * s - a_N[i])
        t_N[i] = t = a_N[i] / s
        for j in range(len(b_M)):
            z_M[j] += t * kernel_NM[i, j]
    w_M[:] = b_M / z_M
    return error


@inner
def _carry(epsilon: float, g_M: Array, z_M: Array) -> None:
    """Move the columns' scaling into their potential."""
    g_M -= g_M.dtype.type(epsilon) * np.log(z_M)
    z_M[:] = 1


@inner
def _finish(
    epsilon: float, a_N: Array, f_N: Array, g_M: Array, kernel_NM: Array, t_N: Array, z_M: Array, w_M: Array
) -> float:
    """Potentials and plan; gives the error of its marginals. What was lifted is 0 in the plan, and missed by both."""
    real, error = kernel_NM.dtype.type, 0.0
    lifted = real(LIFTED)
    _carry(epsilon, g_M, z_M)
    for i in range(len(a_N)):
        s = kept = real(0)
        for j in range(len(w_M)):
            k = kernel_NM[i, j]
            x = k * w_M[j]
            s += x
            x = x if k > lifted else real(0)
            kept += x
            kernel_NM[i, j] = t_N[i] * x
        f_N[i] += epsilon * (math.log(t_N[i] / a_N[i]) if a_N[i] > 0 else -math.log(s))
        error += abs(t_N[i] * kept - a_N[i]) + t_N[i] * (s - kept)
    return error


@inner
def _newton(kernel_NM: Array, a_N: Array, b_M: Array, t_N: Array, z_M: Array, w_M: Array, cg: int) -> None:
    """A Newton step, cut off or else shortened, where the dual rises; see `otkd.ot.entropic_device`."""
    real = kernel_NM.dtype.type
    s_N = _to_rows(kernel_NM, w_M)
    r_N = t_N * s_N
    safe_N = np.maximum(np.sqrt(r_N), real(1e-37))
    left_N, squared_M = np.sqrt(t_N / s_N), w_M / z_M
    full_N = _by_conjugate_gradients(kernel_NM, left_N, squared_M, (a_N - r_N) / safe_N, cg) / safe_N
    longest, most = np.abs(full_N).max(), real(NEWTON_STEP)
    if not _rises(np.minimum(np.maximum(full_N, -most), most), kernel_NM, a_N, b_M, t_N, z_M, w_M) and longest > most:
        _rises(full_N * (most / longest), kernel_NM, a_N, b_M, t_N, z_M, w_M)


@inner
def _rises(step_N: Array, kernel_NM: Array, a_N: Array, b_M: Array, t_N: Array, z_M: Array, w_M: Array) -> bool:
    """Take a step of the rows' potentials if the dual rises by it."""
    new_t_N = t_N * np.exp(step_N)
    new_z_M = _to_columns(kernel_NM, new_t_N)
    if not np.sum(a_N * step_N) + np.sum(b_M * np.log(z_M / new_z_M)) > 0:
        return False
    t_N[:], z_M[:], w_M[:] = new_t_N, new_z_M, b_M / new_z_M
    return True


@inner
def _by_conjugate_gradients(kernel_NM: Array, left_N: Array, squared_M: Array, y_N: Array, most: int) -> Array:
    """(I − Q Qᵀ) x = y with Q = diag(left) K diag(√squared)."""
    real = kernel_NM.dtype.type
    x_N, rest_N, way_N = np.zeros_like(y_N), y_N, y_N
    size = first = np.sum(y_N * y_N)
    for _ in range(most):
        image_N = way_N - left_N * _to_rows(kernel_NM, squared_M * _to_columns(kernel_NM, left_N * way_N))
        stride = size / max(np.sum(way_N * image_N), real(1e-37))
        x_N = x_N + stride * way_N
        rest_N = rest_N - stride * image_N
        before, size = size, np.sum(rest_N * rest_N)
        if not size > real(CG_TOLERANCE) * first:
            break
        way_N = rest_N + (size / before) * way_N
    return x_N


@inner
def _to_rows(kernel_NM: Array, w_M: Array) -> Array:
    s_N = np.empty(len(kernel_NM), kernel_NM.dtype)
    for i in range(len(s_N)):
        s = kernel_NM.dtype.type(0)
        for j in range(len(w_M)):
            s += kernel_NM[i, j] * w_M[j]
        s_N[i] = s
    return s_N


@inner
def _to_columns(kernel_NM: Array, t_N: Array) -> Array:
    z_M = np.zeros(kernel_NM.shape[1], kernel_NM.dtype)
    for i in range(len(t_N)):
        for j in range(len(z_M)):
            z_M[j] += t_N[i] * kernel_NM[i, j]
    return z_M


def exp(x: Any) -> Any:
    """e^x for −87 < x ≤ 0 in the precision of x; compiled, of operations that vectors have."""
    return np.exp(x)


@overload(exp, jit_options=PLAIN | {"fastmath": {"contract"}})
def _exp(x: Any) -> Callable[[Any], Any]:
    """2^k e^r with k whole and |r| ≤ ln 2 / 2: e^r by its Taylor series, 2^k by its bits."""
    if x == types.float32:
        one, half, log2e = np.float32(1), np.float32(0.5), np.float32(math.log2(math.e))
        high, low = np.float32(0.693359375), np.float32(math.log(2) - 0.693359375)  # together ln 2
        c2, c3, c4, c5, c6, c7 = (np.float32(1 / math.factorial(k)) for k in range(2, 8))

        def single(x: Any) -> Any:
            k = np.floor(x * log2e + half)
            r = (x - k * high) - k * low
            p = one + r * (one + r * (c2 + r * (c3 + r * (c4 + r * (c5 + r * (c6 + r * c7))))))
            return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)

        return single
    high64, low64 = math.floor(math.log(2) * 2**32) / 2**32, 1.9082149292705877e-10  # together ln 2
    d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13 = (1 / math.factorial(k) for k in range(2, 14))

    def double(x: Any) -> Any:
        k = np.floor(x * math.log2(math.e) + 0.5)
        r = (x - k * high64) - k * low64
        q = d7 + r * (d8 + r * (d9 + r * (d10 + r * (d11 + r * (d12 + r * d13)))))
        p = 1 + r * (1 + r * (d2 + r * (d3 + r * (d4 + r * (d5 + r * (d6 + r * q))))))
        return p * np.int64((np.int64(k) + np.int64(1023)) << np.int64(52)).view(np.float64)

    return double
