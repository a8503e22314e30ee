"""What the drivers of entropic transport share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from otkd.ot import problem

DEVICE_BUDGET = 64
"""Iterations in place of a tolerance where looking at the error would make the host wait for the device."""


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
    """One per problem of the batch; the plan's columns are exact but for what was lifted, which `error_B` counts."""

    f_BN: Tensor
    g_BM: Tensor
    plan_BNM: Tensor
    error_B: Tensor
    dual_B: Tensor
    """a·f + b·g."""
    n_iters: int

    def shaped(self, lead: tuple[int, ...]) -> Solution:
        """With leading dimensions in place of the number of problems."""
        f, g, plan, error, dual = (part.reshape((*lead, *part.shape[1:])) for part in self[:5])
        return Solution(f, g, plan, error, dual, self.n_iters)


def budget(device: torch.device, settings: Settings) -> tuple[int, bool]:
    """The most iterations, and whether just so many are run without a look at the error."""
    return problem.budget(device, settings, DEVICE_BUDGET)


def times(matrix_BNM: Tensor, vector_BM: Tensor) -> Tensor:
    """Matrix times vector."""
    if matrix_BNM.is_cuda:  # a matrix product may be set to TF32 there, too coarse for the marginals
        return (matrix_BNM * vector_BM[:, None, :]).sum(-1)
    return torch.bmm(vector_BM[:, None, :], matrix_BNM.mT)[:, 0]
