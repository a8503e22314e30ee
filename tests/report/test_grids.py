"""Tables of two settings and of the importance of settings, against figures worked out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_sweeps import PAIRS, Sweep

from otkd.core import names
from otkd.report import choice, frame, grids, render
from otkd.report.formats import latex, markdown
from otkd.report.options import checked
from otkd.report.tables import importance, interactions

LOSS = names.test("last", "loss")
PAIR = "wrn_16_2 ← wrn_40_2"
MEANS = {(0.1, 1): 70.0, (0.1, 2): 71.0, (0.1, 4): 75.0, (0.5, 1): 74.0, (0.5, 2): 73.0, (0.5, 4): 75.0}
"""(epsilon, weight) → mean: epsilon explains 6, weight 12 and both together 4 of the 22 squares."""


def swept(seeds: int = 1, val: bool = False, drop: tuple = ()) -> Sweep:
    """The grid of MEANS; of several seeds each adds the same to all. `drop`: (epsilon, weight, seed) that diverged."""
    sweep = Sweep(val="5000.0" if val else "0.0")
    for seed in range(seeds):
        sweep.student("student", 70.0, seed)
        for (epsilon, weight), mean in MEANS.items():
            axes = {"transport.solver.epsilon": epsilon, "transport.weight": weight}
            if (epsilon, weight, seed) in drop:
                sweep.student("ot", seed=seed, axes=axes, status="diverged")
                continue
            held = {names.BEST_VAL_TOP1: mean + seed} if val else {}
            sweep.student("ot", 60.0 if val else mean + seed, seed, axes=axes, **held)
    return sweep


def tables(plugin, sweep: Sweep, finals: bool = False) -> list:
    record = sweep.record()
    record = record._replace(info=record.info.model_copy(update={"finals": finals}))
    return plugin.table(frame.trials(record), record.info)


def test_a_cell_for_each_combination():
    (table,) = tables(interactions, swept(2))
    assert table.name == "interactions-ot-transport-solver-epsilon-transport-weight"
    assert table.frame.reset_index().to_numpy().tolist() == [
        ["0.1", "70.50 ± 0.71", "71.50 ± 0.71", "75.50 ± 0.71"],
        ["0.5", "74.50 ± 0.71", "73.50 ± 0.71", "75.50 ± 0.71"],
    ]
    assert table.frame.columns.tolist() == ["weight = 1", "weight = 2", "weight = 4"]
    assert table.bold == {(0, 2), (1, 2)}
    assert "tune on the test set" in table.caption
    assert "over seeds, n = 2." in table.caption
    assert latex(table)
    assert markdown(table)


def test_a_combination_that_lost_a_seed_says_so_and_is_not_the_best():
    (table,) = tables(interactions, swept(2, drop=((0.1, 4, 1),)))
    assert table.frame.loc["0.1", "weight = 4"] == "75.00 (n = 1, no spread; diverged ×1)"
    assert table.bold == {(1, 2)}
    data = table.data.set_index(["first_value", "second_value"])
    assert data.loc[("0.1", "4"), ["mean", "n", "not_counted"]].tolist() == [75.0, 1, "diverged ×1"]
    assert math.isnan(data.loc[("0.1", "4"), "std"])
    assert data.loc[("0.5", "1"), "std"] == pytest.approx(math.sqrt(0.5))


def test_validation_goes_first_where_there_is_one():
    (table,) = tables(interactions, swept(val=True))
    assert table.frame.loc["0.5", "weight = 1"] == "74.00"
    assert table.caption.startswith("Val top-1 of the best epoch. Values of transport.solver.epsilon (rows)")
    assert f"of ot on {PAIR}, in %: one" in table.caption
    assert "may be chosen" in table.caption
    assert "one figure each, without a spread" in table.caption


def test_the_figure_that_a_reader_chose_is_shown():
    """Losses that fall with accuracy: what explains the one explains the other, and the lowest is the best."""
    sweep = swept(val=True)
    for row in sweep.rows:
        if row.label.method == "ot":
            row.metrics[LOSS] = (100 - row.metrics[names.BEST_VAL_TOP1]) / 1000
    record = sweep.record()
    trials = choice.choose(frame.trials(record), LOSS, None)
    (cells,) = interactions.table(trials, record.info)
    assert cells.frame.loc["0.1"].tolist() == ["0.0300", "0.0290", "0.0250"]
    assert cells.bold == {(0, 2), (1, 2)}
    assert cells.caption.startswith("Test loss with the last epoch's weights; lower is better. Values of")
    assert "Bold: the lowest mean" in cells.caption
    assert " in %" not in cells.caption
    assert "tune on the test set" in cells.caption, "whatever was held out, this is a test figure"
    assert set(cells.data["metric"]) == {LOSS}
    (shares,) = importance.table(trials, record.info)
    np.testing.assert_allclose(shares.data["share"], [6 / 22, 12 / 22, 4 / 22])
    assert "Share of the variance of test loss with the last epoch's weights" in shares.caption
    assert "These are test figures" in shares.caption


def test_a_search_has_no_test_figures_to_choose():
    points = [(epsilon, weight, mean, "finished") for (epsilon, weight), mean in MEANS.items()]
    sweep = searched(points)
    for row in sweep.rows:
        row.metrics.update({LOSS: 0.1, names.VAL_LOSS: 100 - row.metrics[names.BEST_VAL_TOP1]})
    record = sweep.record()
    for metric, rule, shown in (
        (LOSS, "Val top-1 of the best epoch", "74.00"),
        (names.VAL_LOSS, "Val loss after", "26.0000"),
    ):
        (cells,) = interactions.table(choice.choose(frame.trials(record), metric, None), record.info)
        assert cells.caption.startswith(rule)
        assert "A combination may be chosen by these figures." in cells.caption
        assert cells.frame.loc["0.5", "weight = 1"] == shown


def test_methods_whose_names_make_one_file_name_have_two():
    sweep = Sweep()
    for method in ("ot+kd", "ot-kd", "ot kd"):
        for a in (1, 2):
            for b in (1, 2):
                axes = {"transport.a_b": a, "transport.a.b": b}
                sweep.student(method, 70.0 + a + len(method) * b, terms=("ce", "transport"), axes=axes)
    made = render.compose(sweep.record(), None, options=checked(formats=["csv"]))
    found = {section.name: [table.name for table in section.tables] for section in made.sections}
    assert found["importance"] == [f"importance-ot-kd{end}" for end in ("", "-2", "-3")]
    assert len(set(found["interactions"])) == 3
    assert found["ablation"] == ["ablation-transport-a-b", "ablation-transport-a-b-2"]


def test_a_third_setting_is_averaged_and_named():
    sweep = Sweep()
    for a in (1, 2):
        for b in (1, 2):
            for c in (1, 3):
                sweep.student("ot", 70.0 + a + c, axes={"transport.a": a, "transport.b": b, "kd.c": c})
    found = tables(interactions, sweep)
    assert [table.title.split(",")[0] for table in found] == ["a × b", "a × c", "b × c"]
    assert found[0].frame.loc["1", "b = 1"] == "73.00 ± 1.41"
    assert "over every seed and value of kd.c (1, 3), n = 2." in found[0].caption


def test_one_setting_needs_neither_table():
    sweep = Sweep()
    for weight in (1, 2):
        sweep.student("ot", 70.0, axes={"transport.weight": weight, "transport.solver.epsilon": 0.1})
    assert tables(interactions, sweep) == tables(importance, sweep) == []


def test_importance_is_the_share_of_the_squares():
    (table,) = tables(importance, swept())
    column = table.frame[PAIR, "share of variance, %"]
    assert column.to_dict() == {"epsilon": "27.3", "weight": "54.5", "epsilon × weight": "18.2"}
    np.testing.assert_allclose(table.data["share"], [6 / 22, 12 / 22, 4 / 22])
    assert table.frame.shape[1] == 1, "no p-values"
    assert "One seed: how much of this is chance cannot be said." in table.caption
    assert "test figures: for reading, not for choosing" in table.caption
    assert table.name == "importance-ot"


def test_importance_goes_by_validation_and_says_what_seeds_alone_would_give():
    sweep = swept(2, val=True)
    for place, row in enumerate(sweep.rows):  # a spread that is not the same everywhere
        if row.label.method == "ot":
            row.metrics[names.BEST_VAL_TOP1] += 0.1 * (place % 3) * row.label.seed
    (table,) = tables(importance, sweep)
    assert "val top-1 of the best epoch" in table.caption
    assert "Nothing was held out" not in table.caption
    assert list(table.frame.index) == ["epsilon", "weight", "epsilon × weight", "seeds alone"]
    assert table.frame[PAIR, "p, Holm"].tolist()[-1] == ""
    assert table.data["share"][:3].sum() == pytest.approx(1)
    assert 0 < table.data["share"][3] < 0.05
    assert (table.data["seeds"] == 2).all()


def test_means_are_over_the_seeds_that_every_combination_finished():
    (table,) = tables(importance, swept(3, drop=((0.1, 4, 1), (0.5, 2, 1))))
    assert "6 combinations, n = 2" in table.caption
    np.testing.assert_allclose(table.data["share"][:3], [6 / 22, 12 / 22, 4 / 22])


@pytest.mark.parametrize(
    ("seeds", "drop", "why"),
    [
        (1, ((0.1, 4, 0),), "5 of 6 combinations have a figure"),
        (2, ((0.1, 4, 0), (0.5, 4, 1)), "no seed finished in every combination"),
    ],
)
def test_what_cannot_be_said_is_said_to_be_so(seeds, drop, why):
    (table,) = tables(importance, swept(seeds, drop=drop))
    assert f"Cannot be said of {PAIR} ({why})" in table.caption
    assert table.frame[PAIR, "share of variance, %"].to_dict() == {"epsilon": "—", "weight": "—"}
    assert table.data["unknown"].tolist() == [why] * 2


def test_pairs_stand_side_by_side():
    sweep = swept(drop=((0.1, 4, 0),))
    for (epsilon, weight), mean in MEANS.items():
        axes = {"transport.solver.epsilon": epsilon, "transport.weight": weight}
        sweep.student("ot", mean, pair=PAIRS[1], axes=axes)
    (table,) = tables(importance, sweep)
    other = "resnet8x4 ← resnet32x4"
    assert table.frame.loc["weight"].tolist() == ["—", "54.5"]
    assert f"{other}: 6 combinations, n = 1" in table.caption
    assert f"Cannot be said of {PAIR} (5 of 6" in table.caption
    assert len({made.name for made in tables(interactions, sweep)}) == 2


def searched(points: list[tuple[float, int, float, str]]) -> Sweep:
    """Candidates (epsilon, weight, val, status) of one search."""
    sweep = Sweep(val="5000.0")
    for epsilon, weight, val, status in points:
        axes = {"transport.solver.epsilon": epsilon, "transport.weight": weight}
        held = {names.BEST_VAL_TOP1: val}
        sweep.student("ot", 99.0, status=status, stage="search", terms=("ce", "transport"), axes=axes, **held)
    return sweep


@pytest.mark.parametrize("finals", [True, False])
def test_a_search_over_a_grid_is_explained_by_its_validation_figures(finals):
    points = [(epsilon, weight, mean, "finished") for (epsilon, weight), mean in MEANS.items()]
    (table,) = tables(importance, searched(points), finals)
    np.testing.assert_allclose(table.data["share"], [6 / 22, 12 / 22, 4 / 22])
    assert "val top-1 of the best epoch" in table.caption
    (cells,) = tables(interactions, searched(points), finals)
    assert cells.frame.loc["0.5", "weight = 1"] == "74.00"


def test_random_draws_have_no_shares_and_no_cells():
    sweep = searched([(0.11, 3, 70.0, "finished"), (0.27, 5, 71.0, "finished"), (0.42, 9, 72.0, "pruned")])
    (table,) = tables(importance, sweep, finals=True)
    assert "(2 of 9 combinations have a figure)" in table.caption
    assert "not estimated from fewer" in table.caption
    assert tables(interactions, sweep, finals=True) == []


def test_a_users_words_are_escaped():
    name = "<script> & 50% a_b $x$ |"
    sweep = Sweep()
    for a in (1, name):
        for b in (1, 2):
            axes = {f"transport.{name}": a, "transport.b": b}
            sweep.student(name, 70.0 + b, terms=("ce", "transport"), axes=axes)
    for table in tables(interactions, sweep) + tables(importance, sweep):
        text = latex(table)
        assert r"50\% a\_b \$x\$ \textbar{}" in text
        assert text.isascii()
        assert "<script>" not in markdown(table)


def test_one_trial_with_a_label_for_each_axis_makes_no_grid():
    """The default setting of two one-factor ablations is one trial."""
    sweep = Sweep()
    for value, seed in ((1, 0), (2, 0)):
        sweep.student("by-weight", 70.0 + value, seed, terms=("ce", "transport"), axes={"transport.weight": value})
    for cost in ("cosine", "sqeuclidean"):
        sweep.student("by-cost", 71.0, 0, terms=("ce", "transport"), axes={"transport.cost": cost})
    record = sweep.record()
    shared = record.info.labels[0].key
    labels = (*record.info.labels[:2], record.info.labels[2].model_copy(update={"key": shared}), record.info.labels[3])
    rows = (*record.trials[:2], record.trials[2]._replace(label=labels[2]), record.trials[3])
    record = record._replace(info=record.info.model_copy(update={"labels": labels}), trials=rows)
    assert grids.grids(frame.trials(record), record.info) == []
