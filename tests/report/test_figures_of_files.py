"""Figures of what trials keep as files: differences of confusions, transport plans."""

from __future__ import annotations

import json

import numpy as np
import pytest
from figure_sweeps import Files, counts, plan
from report_sweeps import PAIRS, Sweep, full_sweep

from otkd.core import names
from otkd.report import frame, style
from otkd.report.options import checked
from otkd.report.plots import confusion_difference, transport_plan
from otkd.report.plots.transport_plan import within

CONFUSION, SNAPSHOTS = "confusion.json", "snapshots.json"
LOSS = names.test("last", "loss")


@pytest.fixture(scope="module")
def trials():
    return frame.trials(full_sweep().record())


def keys(trials, variant, pair=0) -> list[str]:
    """Keys of all its trials, by seed."""
    title = f"{PAIRS[pair][0]} ← {PAIRS[pair][1]}"
    return trials.loc[(trials["variant"] == variant) & (trials["pair"] == title), "key"].tolist()


def texts(figure) -> list[str]:
    figure.canvas.draw()
    return [spot.text for spot in style.spots(figure)]


def image(figure, index: int = 0) -> np.ndarray:
    return np.asarray(next(axes.images[0].get_array() for axes in figure.axes[index:] if axes.images))


def test_the_best_method_is_held_against_the_student_seed_by_seed(trials):
    best, student = keys(trials, "ot+kd"), keys(trials, "student")
    files = Files(
        {
            (best[0], CONFUSION): counts((8, 2, 0), (0, 5, 0), (1, 1, 2)),
            (best[2], CONFUSION): counts((10, 0, 0), (1, 4, 0), (0, 0, 4)),
            (student[0], CONFUSION): counts((6, 4, 0), (0, 5, 0), (2, 0, 2)),
            (student[2], CONFUSION): counts((7, 3, 0), (0, 5, 0), (0, 1, 3)),
            (student[1], CONFUSION): counts((1, 9, 0), (5, 0, 0), (4, 0, 0)),  # the other lacks this seed's counts
            (best[0], "per-class.csv"): 'class,top-1 %\ncat,1\n"a, dog",2\n<b>,3\n',
        }
    )
    figure = confusion_difference.figure(trials, None, None, files=files)
    expected = [[25, -25, 0], [10, -10, 0], [-12.5, 0, 12.5]]
    np.testing.assert_allclose(image(figure), expected)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "wrn_16_2 ← wrn_40_2\not+kd less student, n = 2"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "a, dog", "<b>"]
    told = texts(figure)
    assert told[0] == "cat recognised: +25.0 points, n = 2"
    assert "cat taken for a, dog: −25.0 points, n = 2" in told
    assert sum(bool(axes.images) and axes.get_xlabel() != "" for axes in figure.axes) == 1, "one pair has files"


def test_confusions_are_held_against_the_baseline_and_picked_by_the_figure_that_a_reader_chose():
    sweep = full_sweep()
    for row in sweep.rows:
        row.metrics[LOSS] = {"kd": 0.5, "ot": 0.1}.get(row.label.method, 0.9)
    record = sweep.record()
    every = {(row.label.key, CONFUSION): counts((8, 2), (0, 5)) for row in sweep.rows}
    for asked, heading, told in (
        ({"baseline": "kd"}, "ot+kd less kd, n = 3", "less that of kd. Orange"),
        ({"metric": "loss"}, "ot less student, n = 3", "the lowest mean test loss with the last epoch's weights"),
    ):
        trials = checked(**asked).applied(frame.trials(record))
        figure = confusion_difference.figure(trials, None, None, files=Files(every))
        second = [axes for axes in figure.axes if axes.images][1]
        assert second.get_title(loc="left") == f"resnet8x4 ← resnet32x4\n{heading}"
        assert told in confusion_difference.caption(trials, None)


def test_of_many_classes_the_most_changed_are_named(trials):
    best, student = keys(trials, "ot+kd")[0], keys(trials, "student")[0]
    before = np.diag(np.full(33, 9)) + np.eye(33, k=1, dtype=int)
    after, changed = before.copy(), [*range(3, 12), *range(19, 30)]
    for label in changed:
        after[label, label] -= 2 + label % 3
        after[label, 2] += 2 + label % 3
    files = Files({(best, CONFUSION): counts(*map(tuple, after.tolist()))})
    files.texts[student, CONFUSION] = counts(*map(tuple, before.tolist()))
    axes = confusion_difference.figure(trials, None, None, files=files).axes[0]
    assert axes.get_title(loc="left").endswith("n = 1, 20 of 33 classes")
    shown = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert len(shown) == 20
    assert 2 in shown, "what they are taken for now"
    assert set(shown) - {2} < set(changed)


@pytest.mark.parametrize("text", ["{", '{"classes": 2, "cells": [], "more": 1}', None])
def test_counts_that_cannot_be_read_are_none(trials, text):
    found = {(key, CONFUSION): text for variant in ("student", "ot+kd") for key in keys(trials, variant) if text}
    assert confusion_difference.figure(trials, None, None, files=Files(found)) is None


def test_without_a_baseline_or_files_there_is_nothing_to_show(trials):
    sweep = Sweep()
    sweep.student("ot", 70.0)
    alone = frame.trials(sweep.record())
    for module in (confusion_difference, transport_plan):
        assert module.figure(alone, None, None, files=Files({})) is None
        assert module.figure(trials, None, None) is None
        assert module.figure(frame.trials(Sweep().record()), None, None, files=Files({})) is None


def test_mass_within_classes():
    mass = np.array([[0.2, 0.1, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.2]])
    kept, alike = within(mass, (4, 4, 7))
    assert kept == pytest.approx(0.2 + 0.1 + 0.3 + 0.2)
    assert alike == pytest.approx(0.7 * 0.7 + 0.3 * 0.3)
    assert within(np.zeros((2, 2)), (0, 1)) == (0.0, 0.0)


def test_each_method_shows_the_plan_of_its_lowest_finished_seed(trials):
    first, second = [[0.3, 0.0, 0.1], [0.1, 0.2, 0.0], [0.0, 0.1, 0.2]], [[0.5, 0.5], [0.0, 1.0]]
    lost = keys(trials, "ot")[1]  # diverged
    files = Files(
        {
            (keys(trials, "ot+kd")[1], SNAPSHOTS): plan(first, [1, 1, 5]),
            (keys(trials, "ot+kd")[2], SNAPSHOTS): plan(second, None),
            (keys(trials, "ot", 1)[0], SNAPSHOTS): plan(second, None),
            (lost, SNAPSHOTS): plan(first, None),
        }
    )
    figure = transport_plan.figure(trials, None, None, files=files)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert titles == [
        "wrn_16_2 ← wrn_40_2\not+kd, seed 1, last epoch\ntransport-embedding: 80 % within class (58 % if alike)",
        "resnet8x4 ← resnet32x4\not, seed 0, last epoch\ntransport-embedding: plan between images, ordered by class",
    ]
    np.testing.assert_allclose(image(figure), first)
    assert texts(figure)[0] == "class 1: 86 % of its mass goes to the same class, one trial"
    asked = {key for key, _ in files.asked}
    assert not asked & {lost, *keys(trials, "student"), *keys(trials, "kd")}


def test_more_plans_than_fit_are_counted(trials):
    sweep = Sweep()
    for index in range(14):
        sweep.student(f"ot{index}", 70.0, terms=("ce", "transport"))
    many = frame.trials(sweep.record())
    files = Files({(key, SNAPSHOTS): plan([[1.0]], None) for key in many["key"]})
    figure = transport_plan.figure(many, None, None, files=files)
    assert figure.get_suptitle() == "the first 12 plans; there are more"
    assert len(files.asked) == 13
    assert "the live page has those between" in transport_plan.caption(many, None)


def test_the_plan_of_the_first_epoch_stands_beside_the_last(trials):
    first, half, last = [[0.3, 0.2], [0.3, 0.2]], [[0.4, 0.1], [0.2, 0.3]], [[0.5, 0.0], [0.0, 0.5]]
    kept = json.loads(plan(last, [0, 1]))
    earlier = [(1, first), (60, half)]
    kept["earlier"] = [{"epoch": epoch, **json.loads(plan(matrix, [0, 1]))} for epoch, matrix in earlier]
    files = Files({(keys(trials, "ot+kd")[0], SNAPSHOTS): json.dumps(kept)})
    figure = transport_plan.figure(trials, None, None, files=files)
    shown = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").partition("ot+kd, ")[2] for axes in shown] == [
        "seed 0, epoch 1\ntransport-embedding: 50 % within class (50 % if alike)",
        "seed 0, last epoch\ntransport-embedding: 100 % within class (50 % if alike)",
    ]
    np.testing.assert_allclose([axes.images[0].get_array() for axes in shown], [first, last])
    assert shown[0].get_subplotspec().rowspan == shown[1].get_subplotspec().rowspan
