"""Intervals, tests and corrections against worked examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otkd.report import inference
from otkd.report.stats import Cell

FIGURES = pd.DataFrame(
    {"a": [75.0, 76.0, 74.0, 77.0], "b": [74.0, 75.5, 73.0, 76.0], "c": [73.0, 75.0, 73.5, 70.0]}, index=list("wxyz")
)


def cell(**by_seed: float) -> Cell:
    return Cell(pd.Series({int(seed[1:]): value for seed, value in by_seed.items()}, dtype=float), "")


def test_a_difference_is_taken_over_common_seeds():
    found = inference.difference(cell(s0=75.0, s1=74.0, s2=76.0, s9=10.0), cell(s2=75.0, s1=73.5, s0=73.0, s4=99.0))
    assert found.by_seed.to_dict() == {0: 2.0, 1: 0.5, 2: 1.0}
    mean, std = 3.5 / 3, math.sqrt((0.8333333333**2 + 0.6666666667**2 + 0.1666666667**2) / 2)
    assert found.summary == pytest.approx((mean, std, 3))
    half = 4.302652729911275 * std / math.sqrt(3)  # the t distribution's 0.975 quantile with 2 degrees of freedom
    assert found.interval == pytest.approx((mean - half, mean + half))
    assert found.effect == pytest.approx(mean / std)
    t = mean / (std / math.sqrt(3))
    assert found.p_t == pytest.approx(1 - t / math.sqrt(t * t + 2))  # closed form with 2 degrees of freedom
    assert found.p_wilcoxon == pytest.approx(0.25)  # all three of one sign: 2 of 8 sign patterns
    beaten = [(75.0, 75.0), (75.0, 73.5), (75.0, 73.0), (74.0, 73.5), (74.0, 73.0), (76.0, 75.0)]
    wins = sum(1.0 if left > right else 0.5 for left, right in beaten) + 2  # 76 beats 73.5 and 73 as well
    assert found.better == pytest.approx(wins / 16)  # of 4 × 4 pairs of runs; 10 loses to all, 99 beats all


def test_with_one_seed_nothing_is_claimed():
    found = inference.difference(cell(s0=75.0), cell(s0=74.0))
    assert found.summary.mean == 1
    assert found.better == 1
    told = (*found.interval, *found.bootstrap, found.p_t, found.p_wilcoxon, found.effect)
    assert all(map(math.isnan, told))


def test_equal_differences_have_no_interval():
    found = inference.difference(cell(s0=75.3, s1=6.4), cell(s0=75.0, s1=6.1))
    assert found.by_seed[0] != found.by_seed[1]  # as floats
    assert math.isnan(found.p_t)
    assert math.isnan(found.interval.low)
    assert math.isnan(found.effect)


def test_rounding_breaks_no_ties():
    images = np.array([1, -2, 1, 1, 1, 1])
    right = pd.Series(100 * np.array([151, 160, 149, 157, 163, 170]) / 360)
    found = inference.difference(Cell(right + 100 * images / 360, ""), Cell(right, ""))
    exact = inference.difference(Cell(pd.Series(images, dtype=float), ""), Cell(pd.Series(np.zeros(6)), ""))
    assert found.p_wilcoxon == exact.p_wilcoxon
    noisy = FIGURES.assign(b=FIGURES["a"] + 1e-13)
    assert inference.ranks(noisy).average["a"] == inference.ranks(noisy).average["b"]


def test_no_common_seed_is_no_difference():
    found = inference.difference(cell(s0=75.0), cell(s1=74.0))
    assert found.summary.n == 0
    assert math.isnan(found.p_t)


def test_the_bootstrap_is_that_of_all_resamples():
    values = np.array([0.3, 1.1, -0.2, 0.7])
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=4))
    low, high = np.quantile(means, [0.025, 0.975])
    assert inference.bootstrap(values) == pytest.approx((low, high), abs=0.05)
    assert inference.bootstrap(values) == inference.bootstrap(values)
    assert all(map(math.isnan, inference.bootstrap(values[:2])))


def test_the_least_p_is_what_wilcoxon_gives_at_best():
    for n in range(2, 8):
        left = Cell(pd.Series(np.arange(1.0, n + 1), index=range(n)), "")
        right = Cell(pd.Series(np.zeros(n), index=range(n)), "")
        assert inference.difference(left, right).p_wilcoxon == pytest.approx(inference.least_p(n))


def test_holm_against_the_textbook():
    assert inference.holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert inference.holm([]) == []
    assert all(map(math.isnan, inference.holm([math.nan])))


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_corrects_upwards_and_keeps_the_order(p_values):
    found = inference.holm(p_values)
    assert all(before - 1e-12 <= after <= 1 for before, after in zip(p_values, found, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.asarray(found)[order]) >= -1e-12)
    assert min(found) == pytest.approx(min(1, min(p_values) * len(p_values)))


def test_ranks_against_the_worked_formulas():
    found = inference.ranks(FIGURES)
    assert found.average.to_dict() == {"a": 1.0, "b": 2.25, "c": 2.75}
    blocks, methods = FIGURES.shape
    square = 12 * blocks / (methods * (methods + 1)) * (1 + 2.25**2 + 2.75**2 - methods * (methods + 1) ** 2 / 4)
    assert found.p_friedman == pytest.approx(math.exp(-square / 2))  # chi-squared with 2 degrees of freedom
    assert found.critical == pytest.approx(2.343 * math.sqrt(methods * (methods + 1) / (6 * blocks)), abs=1e-3)
    apart = abs(found.average["a"] - found.average["c"]) > found.critical
    assert (found.p_nemenyi.loc["a", "c"] < inference.ALPHA) == apart
    assert apart
    assert found.p_nemenyi.loc["a", "b"] > inference.ALPHA


def test_two_methods_or_one_block_are_ranked_and_not_tested():
    for few in (FIGURES[["a", "b"]], FIGURES.iloc[:1]):
        found = inference.ranks(few)
        assert found.average.index[0] == "a"
        assert math.isnan(found.p_friedman)
        assert math.isnan(found.critical)
        assert found.p_nemenyi.empty


def test_rounding_wins_no_run():
    noisy, exact = cell(s0=96.69999999999999, s1=96.3), cell(s0=96.7, s1=96.3)
    assert inference.difference(noisy, exact).better == 0.5


def test_a_family_counts_the_tests_alone():
    nan = math.nan
    assert inference.family([[0.1, nan, 0.2]]) == "2 tests"
    assert inference.family([[0.1], [nan]]) == "1 test"
    assert inference.family([[0.1, 0.2, 0.3], [0.1, 0.2], [nan]]) == "2 to 3 tests"
    assert inference.family([[nan]]) == "0 tests"
