"""Figures of settings: what is drawn where, with which interval, and what is left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figure_sweeps import COSTS, EPSILONS, OTHER, SETTING, ablations
from report_sweeps import Sweep, full_sweep
from scipy import stats as scipy_stats

from otkd.core import names
from otkd.report import frame, style
from otkd.report.options import checked
from otkd.report.plots import ablation, heat_maps
from otkd.report.plots.ablation import scale

TOP1, LOSS = names.test("last", "top1"), names.test("last", "loss")


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return frame.trials(ablations().record())


def one(place: int) -> np.ndarray:
    """Figures of `one` at the epsilon of that place; seed 1 of the last diverged."""
    seeds = np.array([0, 2] if place == 2 else [0, 1, 2])
    return 72.0 + place - 0.4 * place**2 + 0.3 * seeds * (1 + place)


def drawn(figure) -> list:
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_xlabel()]


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [
        ([0.05, 0.01, 0.25], "log", {"0.01": 0.01, "0.05": 0.05, "0.25": 0.25}),
        ([1, 2, 4], "linear", {"1": 1, "2": 2, "4": 4}),
        ([0, 10, 100], "linear", {"0": 0, "10": 10, "100": 100}),
        (["a", "c", "b", "a"], "names", {"a": 0, "c": 1, "b": 2}),
        ([True, False], "names", {"True": 0, "False": 1}),
        ([1, "embedding", [1, 2]], "names", {"1": 0, "embedding": 1, "[1, 2]": 2}),
        ([np.int64(1), np.float64(10.0)], "log", {"1": 1, "10": 10}),
    ],
)
def test_numbers_stand_at_their_places_and_names_in_order(values, kind, places):
    found = scale({frame.show(value): value for value in values})
    assert (found.kind, found.places) == (kind, places)
    assert list(found.places) == list(places)


def test_a_curve_joins_the_means_of_the_method_that_varies_one_setting(trials):
    (axes,) = drawn(ablation.figure(trials, None, None))
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", SETTING, "test top-1 %, last epoch")
    (curve,) = [line for line in axes.lines if line.get_label() == "one"]
    np.testing.assert_allclose(curve.get_xdata(), EPSILONS)
    np.testing.assert_allclose(curve.get_ydata(), [one(place).mean() for place in range(3)])
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["one", "student (mean)", "kd (mean)"], "`two` varies two settings"
    looks = style.looks(trials)
    assert curve.get_color() == looks["one (epsilon=0.01)"].colour


def test_bars_are_t_intervals(trials):
    (axes,) = drawn(ablation.figure(trials, None, None))
    bars = {line.get_xdata()[0]: line.get_ydata() for line in axes.lines if len(set(line.get_xdata())) == 1}
    for place, epsilon in enumerate(EPSILONS):
        values = one(place)
        half = scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
        np.testing.assert_allclose(bars[epsilon], [values.mean() - half, values.mean() + half])


def test_points_name_setting_spread_n_and_what_is_lacking(trials):
    figure = ablation.figure(trials, None, None)
    figure.canvas.draw()
    told = [spot.text for spot in style.spots(figure)]
    values = one(2)
    figures = f"{values.mean():.2f} ± {values.std(ddof=1):.2f} %, n = 2, 95 % ["
    assert any(text.startswith(f"one, {SETTING} = 0.25: {figures}") for text in told)
    assert told[2].endswith("; diverged ×1")


def test_validation_comes_first_and_one_seed_has_no_bar():
    trials = frame.trials(ablations(val=True, seeds=(0,)).record())
    axes = drawn(ablation.figure(trials, None, None))
    assert [panel.get_ylabel() for panel in axes] == ["val top-1 %, best epoch", "test top-1 %, last epoch"]
    assert not [line for line in axes[0].lines if line.get_label().startswith("_") and len(set(line.get_xdata())) == 1]
    assert "Choose a setting by the figures of val; those of test are for reading." in ablation.caption(trials, None)


def chosen(**asked) -> pd.DataFrame:
    """With losses of 1 less a hundredth of top-1, and what a reader chose."""
    sweep = ablations(val=True)
    for row in sweep.rows:
        if TOP1 in row.metrics:
            row.metrics[LOSS] = 1 - row.metrics[TOP1] / 100
    return checked(**asked).applied(frame.trials(sweep.record()))


def test_figures_of_settings_show_what_a_reader_chose():
    trials = chosen(metric="loss")
    for module in (ablation, heat_maps):
        figure = module.figure(trials, None, None)
        heads = [panel.get_ylabel() if module is ablation else panel.get_title(loc="left") for panel in drawn(figure)]
        assert [head.split("\n")[-1] for head in heads] == ["val top-1 %, best epoch", "test loss, last epoch"]
        assert "Test loss with the last epoch's weights; lower is better." in module.caption(trials, None)
        figure.canvas.draw()
        told = [spot.text for spot in style.spots(figure) if "= 0.05" in spot.text]
        assert "%" in told[0].split(", n =")[0]
        assert "%" not in told[-1].split(", n =")[0]
    curve = next(line for line in drawn(ablation.figure(trials, None, None))[1].lines if line.get_label() == "one")
    np.testing.assert_allclose(curve.get_ydata(), [1 - one(place).mean() / 100 for place in range(3)])
    values = 1 - one(1) / 100
    figure = ablation.figure(trials, None, None)
    figure.canvas.draw()
    figures = f"one, {SETTING} = 0.05: {values.mean():.4f} ± {values.std(ddof=1):.4f}, n = 3, 95 % ["
    assert any(spot.text.startswith(figures) for spot in style.spots(figure))


def test_curves_are_held_against_the_baseline_that_a_reader_chose():
    axes = drawn(ablation.figure(chosen(baseline="kd"), None, None))[1]
    assert axes.get_legend_handles_labels()[1] == ["one", "kd (mean)"]


def test_a_map_holds_the_mean_of_each_two_settings(trials):
    figure = heat_maps.figure(trials, None, None)
    axes = next(axes for axes in figure.axes if axes.images)
    assert (axes.get_ylabel(), axes.get_xlabel()) == (SETTING, OTHER)
    expected = [[70.0 + 0.5 * place + 2 * shift + 0.1 for shift in (0, 1)] for place in range(3)]
    expected[0][1] = np.nan  # diverged
    np.testing.assert_allclose(np.ma.filled(axes.images[0].get_array(), np.nan), expected)
    assert [text.get_text() for text in axes.texts][:3] == ["70.10\n± 0.10", "—", "70.60\n± 0.10"]
    figure.canvas.draw()
    told = [spot.text for spot in style.spots(figure)]
    assert told[0] == f"two, {SETTING} = 0.01, {OTHER} = sqeuclidean: 70.10 ± 0.10 %, n = 3"
    assert told[1] == f"two, {SETTING} = 0.01, {OTHER} = cosine: —, n = 0; diverged ×3"


def test_a_third_setting_is_averaged_over_and_said_so(trials):
    sweep = Sweep()
    for weight in (1, 2):
        for epsilon in (0.1, 0.2):
            for layer in ("a", "b"):
                axes = {"t.weight": weight, "t.epsilon": epsilon, "t.layer": layer}
                sweep.student("ot", 70 + weight + 10 * epsilon + (layer == "b"), axes=axes)
    three = frame.trials(sweep.record())
    figure = heat_maps.figure(three, None, None)
    maps = [axes for axes in figure.axes if axes.images]
    assert [(axes.get_ylabel(), axes.get_xlabel()) for axes in maps] == [
        ("t.weight", "t.epsilon"),
        ("t.weight", "t.layer"),
        ("t.epsilon", "t.layer"),
    ]
    np.testing.assert_allclose(maps[0].images[0].get_array(), [[72.5, 73.5], [73.5, 74.5]])
    assert "a cell is the mean over the others too" in heat_maps.caption(three, None)
    assert "the mean over the others" not in heat_maps.caption(trials, None)
    assert ablation.figure(three, None, None) is None


@pytest.mark.parametrize("sweep", [Sweep(), full_sweep()], ids=["empty", "without settings"])
def test_without_settings_there_is_nothing_to_show(sweep):
    trials = frame.trials(sweep.record())
    assert ablation.figure(trials, None, None) is None
    assert heat_maps.figure(trials, None, None) is None


def test_what_has_not_finished_makes_no_panel():
    sweep = Sweep()
    for epsilon in EPSILONS:
        for cost in COSTS:
            axes = {SETTING: epsilon, OTHER: cost}
            sweep.student("two", 70.0, status="diverged", terms=("ce", "transport"), axes=axes)
        sweep.student("one", 70.0, status="running", terms=("ce", "transport"), axes={SETTING: epsilon})
    unfinished = frame.trials(sweep.record())
    assert unfinished[TOP1].notna().all()
    assert ablation.figure(unfinished, None, None) is None
    assert heat_maps.figure(unfinished, None, None) is None


def test_more_maps_than_fit_are_counted(trials):
    sweep = Sweep()
    for index in range(14):
        for epsilon in EPSILONS[:2]:
            for cost in COSTS:
                axes = {SETTING: epsilon, OTHER: cost}
                sweep.student(f"ot{index}", 70.0, terms=("ce", "transport"), axes=axes)
    many = frame.trials(sweep.record())
    assert sum(bool(axes.images) for axes in drawn(heat_maps.figure(many, None, None))) == 12
    told = "The first 12 of 14 maps are drawn; trials.csv has every trial with its settings."
    assert told in heat_maps.caption(many, None)
    assert "trials.csv" not in heat_maps.caption(trials, None)


def test_a_method_of_which_nothing_has_finished_has_no_line():
    sweep = ablations()
    for epsilon in EPSILONS:
        sweep.student("lost", 70.0, status="failed", terms=("ce", "transport"), axes={SETTING: epsilon})
    (axes,) = drawn(ablation.figure(frame.trials(sweep.record()), None, None))
    assert axes.get_legend_handles_labels()[1] == ["one", "student (mean)", "kd (mean)"]
