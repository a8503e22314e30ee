"""Fast exponentials against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from otkd.ot import logspace


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
def test_logsumexp_equals_torchs(dim: int, offset: float) -> None:
    x = 100 * torch.randn(2, 13, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    x[0, 3, 5] = -torch.inf
    torch.testing.assert_close(logspace.logsumexp_(x.clone(), dim), torch.logsumexp(x, dim), rtol=1e-14, atol=1e-11)


def test_exp_is_zero_far_below_and_shows_what_is_no_number() -> None:
    x = torch.tensor([-math.inf, -1000, -81, -79, 0, 1, math.inf, math.nan])
    truth = torch.tensor([0, 0, 0, math.exp(-79), 1, math.e, math.inf, math.nan])
    torch.testing.assert_close(logspace.exp_(x.clone()), truth, rtol=1e-6, atol=0, equal_nan=True)
