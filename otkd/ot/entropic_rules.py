"""What the drivers of entropic transport share: settings, result, thresholds, and when a Newton step is worth it."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from otkd.ot import problem

ANNEALING = 4.0
STEEP = 100.0
"""Costs' range in units of ε from which on ε-scaling pays."""
GENTLE = 50.0
"""The same range at the first ε of ε-scaling."""
SETTLED = 0.01
"""Marginal error at which ε-scaling goes on to the next ε."""
DEPTH = 60.0
"""Natural logarithm of the range that the kernel keeps below each row's maximum; single precision has 87."""
NEAR = 0.3
"""Marginal error under which a given start needs no ε-scaling."""
AGE = 40
"""Iterations after which potentials that have gone far are absorbed again."""
FAR = 20.0
"""How far that is, in units of ε. One that has not is left: in single precision each absorption rounds ε = 1e-4 of the
cost to a kernel that is off by a thousandth, and a solved problem would have to be solved again."""
ROUND = 5
"""Iterations between two absorptions where the host may not look."""
DEVICE_BUDGET = 64
"""Iterations in place of a tolerance where looking at the error would make the host wait for the device."""
NEWTON_STEP = 3.0
"""The farthest that a Newton step may move a potential, in units of ε."""
DIRECT = 64
"""Largest N for which a Newton step factors its system on the CPU; otherwise it takes `CG` conjugate gradients."""
CG = 20
CG_TOLERANCE = 1e-4
"""Squared relative residual at which the host, where it looks, stops them."""
TURN = 1 << 15
"""Size of a kernel from which on a transposed copy pays."""


class Settings(Protocol):
    """What the configurations of the entropic solvers have in common."""

    @property
    def epsilon(self) -> float: ...
    @property
    def max_iters(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def check_every(self) -> int: ...
    @property
    def iterations(self) -> int | None: ...
    @property
    def annealing(self) -> bool: ...


class Solution(NamedTuple):
    """One per problem of the batch; the plan's columns are exact."""

    f_BN: Tensor
    g_BM: Tensor
    plan_BNM: Tensor
    error_B: Tensor
    dual_B: Tensor
    """a·f + b·g."""
    n_iters: int


def budget(device: torch.device, settings: Settings) -> tuple[int, bool]:
    """The most iterations, and whether just so many are run without a look at the error."""
    return problem.budget(device, settings, DEVICE_BUDGET)


def newton_price(n: int) -> float:
    """What a Newton step costs, in iterations, as measured on CPUs."""
    return 15 + n / 4 if n <= DIRECT else CG


def cooler(epsilon: float, target: float, error: float, at_once: bool) -> float:
    """The next ε of ε-scaling."""
    if at_once:
        return target
    return max(epsilon / ANNEALING, target) if error < SETTLED else epsilon


class Pace:
    """Chooses between plain iterations and Newton steps by the rate at which the former were seen to converge."""

    def __init__(self, tolerance: float, price: float) -> None:
        self.tolerance, self.price = tolerance, price
        self.restart()

    def restart(self) -> None:
        """Nothing is known of the error after an absorption but that it is below 1 or so."""
        self.error, self.rate = 1.0, math.nan

    def look(self, error: float, steps: int, newton: bool) -> None:
        if not newton:
            self.rate = math.log(max(error, 1e-30) / max(self.error, 1e-30)) / steps
        self.error = error

    def plan(self, most: int) -> tuple[int, bool]:
        """How many iterations come next, and whether a Newton step is the first of them."""
        if math.isnan(self.rate):
            return most, False
        short = math.log(self.tolerance / max(self.error, 1e-30))
        needed = short / self.rate if self.rate < 0 else math.inf
        if 2 * needed > self.price:
            return most, True
        return max(1, min(most, math.ceil(needed))), False
