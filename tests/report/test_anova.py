"""Functional ANOVA against sums of squares worked out by hand, and against statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from otkd.report.anova import anova


def grid(values, *axes: str) -> pd.DataFrame:
    """Axes × seeds as `anova` takes them."""
    array = np.asarray(values, dtype=float)
    levels = [[f"{axis}{place}" for place in range(size)] for axis, size in zip(axes, array.shape[:-1], strict=True)]
    index = pd.MultiIndex.from_product(levels, names=axes)
    return pd.DataFrame(array.reshape(len(index), -1), index=index)


def test_two_by_three_by_hand():
    # means 70 71 75 | 74 73 75; grand mean 73. rows 72, 74: squares 3·(1 + 1) = 6.
    # columns 72, 72, 75: 2·(1 + 1 + 4) = 12. total 9 + 4 + 4 + 1 + 0 + 4 = 22, so 4 remain for both together
    found = anova(grid([[[70], [71], [75]], [[74], [73], [75]]], "a", "b"))
    assert [effect.axes for effect in found.effects] == [("a",), ("b",), ("a", "b")]
    np.testing.assert_allclose([effect.share for effect in found.effects], [6 / 22, 12 / 22, 4 / 22])
    assert all(math.isnan(effect.p) for effect in found.effects), "one seed"
    assert math.isnan(found.noise)
    assert (found.configurations, found.seeds) == (6, 1)


def test_the_order_of_rows_is_no_matter():
    values = grid([[[70], [71], [75]], [[74], [73], [75]]], "a", "b")
    mixed = anova(values.sample(frac=1, random_state=3))
    assert [effect.share for effect in mixed.effects] == [effect.share for effect in anova(values).effects]


def test_p_values_are_those_of_randomised_blocks():
    values = grid(np.random.default_rng(0).normal(size=(2, 3, 4)) + np.arange(3)[:, None], "a", "b")
    found = anova(values)
    long = values.stack().rename("y").rename_axis(["a", "b", "seed"]).reset_index()
    table = anova_lm(ols("y ~ C(seed) + C(a) * C(b)", long).fit())
    peer = table.loc[["C(a)", "C(b)", "C(a):C(b)"]]
    np.testing.assert_allclose([effect.p for effect in found.effects], peer["PR(>F)"])
    np.testing.assert_allclose(
        [effect.share for effect in found.effects], peer["sum_sq"] / peer["sum_sq"].sum(), rtol=1e-6
    )
    between = peer["sum_sq"].sum() / 5
    assert found.noise == pytest.approx(table.loc["Residual", "mean_sq"] / between)


def test_three_axes_leave_a_rest():
    values = np.random.default_rng(1).normal(size=(2, 3, 2, 3))
    found = anova(grid(values, "a", "b", "c"))
    assert [effect.axes for effect in found.effects] == [
        *(("a",), ("b",), ("c",)),
        *(("a", "b"), ("a", "c"), ("b", "c")),
        (),
    ]
    assert sum(effect.share for effect in found.effects) == pytest.approx(1)
    long = grid(values, "a", "b", "c").stack().rename("y").rename_axis(["a", "b", "c", "seed"]).reset_index()
    table = anova_lm(ols("y ~ C(seed) + C(a) * C(b) * C(c)", long).fit())
    np.testing.assert_allclose(found.effects[-1].p, table.loc["C(a):C(b):C(c)", "PR(>F)"])
    np.testing.assert_allclose(found.effects[4].p, table.loc["C(a):C(c)", "PR(>F)"])


def test_an_effect_of_one_axis_alone_explains_all():
    values = np.broadcast_to(np.array([70.0, 72.0])[:, None, None], (2, 3, 2)) + np.array([0.0, 0.5])
    found = anova(grid(values, "a", "b"))
    assert [effect.share for effect in found.effects] == pytest.approx([1, 0, 0])
    assert math.isnan(found.effects[0].p), "seeds leave no residual"
    assert found.noise == 0


def test_seeds_alone_never_explain_more_than_all():
    values = np.random.default_rng(2).normal(size=(2, 2, 3))
    values -= values.mean(2, keepdims=True)
    values[0, 0] += 1e-3
    assert anova(grid(values, "a", "b")).noise == 1


def test_means_that_are_alike_have_no_shares():
    found = anova(grid(np.full((2, 3, 2), 70.0), "a", "b"))
    assert all(math.isnan(effect.share) for effect in found.effects)
    assert math.isnan(found.noise)
