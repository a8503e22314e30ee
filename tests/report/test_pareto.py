"""The Pareto front of accuracy against time, worked out by hand."""

from __future__ import annotations

import math

import pytest
from report_sweeps import Sweep, full_sweep

from otkd.core import plugins
from otkd.report import frame
from otkd.report.plots.cost import Point, caption, figure, front
from otkd.report.stats import Summary


def points(**figures: tuple[float, ...]) -> dict[str, Point]:
    """Seconds, top-1 and, where not 3, the number of seeds of each method."""
    found = {name: (*values, 3)[:3] for name, values in figures.items()}
    return {name: Point(Summary(s, 0.1, 3), Summary(top1, 0.2, int(n))) for name, (s, top1, n) in found.items()}


@pytest.mark.parametrize(
    ("found", "members", "left_out"),
    [
        (points(slow=(9, 75), quick=(2, 70), middle=(5, 73)), ["quick", "middle", "slow"], []),
        (points(a=(2, 70), dear=(5, 70), worse=(2, 69), both=(6, 60)), ["a"], []),
        (points(b=(5, 73), a=(2, 70), hidden=(5, 72)), ["a", "b"], []),
        (points(one=(2, 70), twin=(2, 70)), ["one", "twin"], []),
        (points(a=(2, 70), lucky=(1, 80, 1), b=(3, 71)), ["a", "b"], ["lucky"]),
        (points(alone=(2, 70)), ["alone"], []),
        ({}, [], []),
    ],
)
def test_front(found, members, left_out):
    assert front(found) == (members, left_out)


def test_the_caption_names_the_members_of_each_pair(record):
    told = caption(frame.trials(record), record.info)
    assert (
        "On it: wrn_16_2 ← wrn_40_2: student, kd, ot+kd (not considered, having fewer seeds: ot); "
        "resnet8x4 ← resnet32x4: student, kd, ot, ot+kd." in told
    )
    assert "by means" in told


def test_the_line_steps_through_the_members():
    sweep = full_sweep()
    sweep.student("at", 60.0, 0, terms=("ce", "attention"), seconds=40.0)
    for seed in (1, 2):
        sweep.student("at", 60.5, seed, terms=("ce", "attention"), seconds=40.0)
    trials = frame.trials(sweep.record())
    axes = figure(trials, None, None).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata() == pytest.approx([10.3, 14.3, 22.3])
    assert axes.get_ylim()[0] < 60.3, "what is not on the front is drawn too"
    faces = {handle.get_label(): handle.lines[0].get_markerfacecolor() for handle in axes.containers}
    assert [name for name, face in faces.items() if face == "white"] == ["ot", "at"]


def test_one_method_has_no_front_to_speak_of():
    sweep = Sweep()
    sweep.student("kd", 70.0)
    trials = frame.trials(sweep.record())
    assert "Pareto" not in caption(trials, None)
    assert figure(trials, None, None).axes[0].get_legend_handles_labels()[1] == ["kd"]


def test_nothing_finished_draws_nothing():
    sweep = Sweep()
    sweep.student("kd", math.nan, status="failed")
    trials = frame.trials(sweep.record())
    assert plugins.load("plots", "cost").figure(trials, None, None) is None
    assert "Pareto" not in caption(trials, None)
