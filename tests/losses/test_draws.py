"""Numbers of an image: uniform, its own, and nobody else's."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from otkd.losses.draws import uniform

INDICES = torch.tensor([0, 1, 2, 13, 21, 987, 997, 6765, 49_999, 1_281_166])


def test_they_are_uniform_below_one() -> None:
    drawn = uniform(3, 5, INDICES, 20_000)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() < 1
    for row in [*drawn, *uniform(3, 5, torch.arange(20_000), 3).T]:
        assert stats.kstest(row.double().numpy(), "uniform").pvalue > 1e-4


def test_rows_of_different_images_have_nothing_in_common() -> None:
    drawn = uniform(3, 5, INDICES, 20_000).double()
    ranked = torch.corrcoef(drawn) - torch.eye(len(INDICES), dtype=torch.float64)
    assert ranked.abs().max() < 5 / 20_000**0.5
    places = torch.corrcoef(uniform(3, 5, torch.arange(20_000), 9).T.double()) - torch.eye(9, dtype=torch.float64)
    assert places.abs().max() < 5 / 20_000**0.5


def test_an_images_numbers_do_not_depend_on_its_batch() -> None:
    order = torch.tensor([7, 2, 9, 0])
    assert torch.equal(uniform(3, 5, INDICES[order], 17), uniform(3, 5, INDICES, 17)[order])
    assert torch.equal(uniform(3, 5, INDICES, 17), uniform(3, 5, INDICES, 31)[:, :17])


@pytest.mark.parametrize(("seed", "step"), [(4, 5), (3, 6)])
def test_another_seed_or_step_gives_others(seed: int, step: int) -> None:
    one, other = uniform(3, 5, INDICES, 5_000).double(), uniform(seed, step, INDICES, 5_000).double()
    for mine, theirs in zip(one, other, strict=True):
        assert abs(torch.corrcoef(torch.stack([mine, theirs]))[0, 1]) < 5 / 5_000**0.5
