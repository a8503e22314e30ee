"""Several sweeps in one report: whose trials stand under which name, and what may not stand in one table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_sweeps import PAIRS, Sweep

from otkd.core import plugins
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.report import frame, render, side_by_side, summary
from otkd.report.files import NONE
from otkd.report.tables import ablation, accuracy, cost, differences
from otkd.track import reader
from otkd.track.bulk import Columns
from otkd.track.reader import SweepRecord

PAIR = "wrn_16_2 ← wrn_40_2"
NASTY = "<b>a_b & $x$</b>"


def named(sweep: Sweep, name: str, keys: str = "", dataset: str = "", **params: str) -> SweepRecord:
    """The sweep under a name; `keys` begins the keys of its trials, so sweeps of one beginning share trials."""
    record = sweep.record()
    rows = tuple(
        row._replace(
            label=row.label.model_copy(update={"key": keys + row.label.key[len(keys) :]}),
            params={**row.params, **params} if row.params else {},
        )
        for row in record.trials
    )
    changed = {"name": name, "key": f"key of {name}", "labels": tuple(row.label for row in rows)}
    info = record.info.model_copy(update=changed | ({"dataset": dataset} if dataset else {}))
    return SweepRecord(info, f"run-{name}", record.started, rows)


def small(*methods: str, top1: float = 70.0, seeds: int = 3, lost: tuple[str, int] = ("", 0)) -> Sweep:
    sweep = Sweep()
    for method in methods:
        for seed in range(seeds):
            if (method, seed) == lost:
                sweep.missing(method, seed)
            else:
                sweep.student(method, top1 + seed / 10, seed)
    return sweep


def join(*records: SweepRecord, mixed: bool = False) -> tuple[pd.DataFrame, SweepRecord, str]:
    curves = pd.DataFrame({"key": [], "metric": [], "epoch": [], "value": []})
    joined, _, mark = side_by_side.join([(record, curves) for record in records], mixed)
    return frame.trials(joined), joined, mark


def counts(trials: pd.DataFrame) -> dict[Any, int]:
    return frame.students(trials).groupby("variant", sort=False).size().to_dict()


def test_trials_of_both_are_one_trial():
    trials, joined, mark = join(named(small("student", "kd"), "a"), named(small("student", "kd", "ot"), "b"))
    assert counts(trials) == {"student": 3, "kd": 3, "ot": 3}
    assert joined.info.name == "a+b"
    assert mark == ""
    assert trials["key"].is_unique


def test_one_name_for_two_settings_is_told_apart_by_the_sweep():
    left, right = named(small("student", "kd"), "a"), named(small("student", "kd"), "b")
    rows = tuple(
        row._replace(label=row.label.model_copy(update={"key": "f" + row.label.key[1:]}))
        if row.label.method == "kd"
        else row
        for row in right.trials
    )
    trials, _, _ = join(left, right._replace(trials=rows))
    assert counts(trials) == {"student": 3, "kd [a]": 3, "kd [b]": 3}


def test_one_settings_with_other_seeds_is_one_method():
    later = Sweep()
    for seed in (5, 6):
        later.student("kd", 71.0, seed)
    trials, _, _ = join(named(small("kd"), "a"), named(later, "b", keys="f"))
    assert counts(trials) == {"kd": 5}
    other = named(later, "b", keys="f", **{"objective.kd.temperature": "4.0"})
    trials, _, _ = join(named(small("kd"), "a"), other)
    assert counts(trials) == {"kd [a]": 3, "kd [b]": 2}


def test_one_trial_under_two_names_is_called_as_in_the_first():
    left = small("kd", seeds=2)
    right = Sweep()
    for seed in range(3):
        right.student("hinton", 70.0, seed, terms=("ce", "kd"))
    trials, _, _ = join(named(left, "a"), named(right, "b"))
    assert counts(trials) == {"kd": 3}, "the third seed is of the same method"


def test_a_grid_goes_on_in_the_second_sweep():
    def grid(*weights: int) -> Sweep:
        sweep = Sweep()
        for weight in weights:
            sweep.student("ot", 70.0 + weight, axes={"transport.weight": weight})
        for row in sweep.rows:
            row.params["objective.transport.weight"] = str(row.label.axes["transport.weight"])
        return sweep

    trials, _, _ = join(named(grid(1, 2), "a"), named(grid(4, 8), "b", keys="f"))
    assert list(counts(trials)) == [f"ot (weight={weight})" for weight in (1, 2, 4, 8)]
    trials, _, _ = join(named(grid(1), "a"), named(grid(4), "b", keys="f", **{"objective.transport.cost": "l2"}))
    assert list(counts(trials)) == ["ot [a] (weight=1)", "ot [b] (weight=4)"]


def test_other_teachers_of_one_name_make_other_pairs():
    sweeps = []
    for name, top1 in (("a", 75.0), ("b", 77.0)):
        sweep = Sweep()
        sweep.teacher("wrn_40_2", top1)
        sweep.student("kd", 70.0)
        sweeps.append(named(sweep, name, keys=name))
    trials, _, _ = join(*sweeps)
    assert frame.pairs(trials) == [f"{PAIR} [a]", f"{PAIR} [b]"]
    tops = [frame.teachers(trials, pair)["test/last/top1"].tolist() for pair in frame.pairs(trials)]
    assert tops == [[75.0], [77.0]]


def test_three_sweeps_two_of_which_agree():
    same = [named(small("kd"), name) for name in ("a", "b")]
    other = named(small("kd"), "c", keys="f")
    trials, joined, _ = join(*same, other)
    assert counts(trials) == {"kd [a, b]": 3, "kd [c]": 3}
    assert joined.info.name == "a+b+c"


def test_what_one_lost_is_not_counted_twice():
    trials, _, _ = join(named(small("kd", lost=("kd", 1)), "a"), named(small("kd", "ot", lost=("ot", 2)), "b"))
    assert counts(trials) == {"kd": 3, "ot": 3}
    assert frame.students(trials)["status"].value_counts().to_dict() == {"finished": 4, "missing": 2}


def test_budgets_that_differ_are_refused_or_marked():
    left = named(small("student", "kd"), "a")
    right = named(small("student", "kd"), "b", keys="f", **{"train.epochs": "100", "data.val": "0.1"})
    told = "train.epochs is 240 in a and 100 in b; data.val is none in a and 0.1 in b"
    with pytest.raises(OtkdError, match=rf"^a and b had different budgets: {told}\. .*--mixed-budgets"):
        join(left, right)
    trials, _, mark = join(left, right, mixed=True)
    assert mark.startswith(f"Mixed budgets: {told}.")
    assert list(counts(trials)) == ["student [a]", "kd [a]", "student [b]", "kd [b]"]
    assert list(differences.compared(trials, PAIR)) == ["student [a]", "kd [a]"]
    assert mark.endswith(
        " On a pair of networks all methods are held against the same baselines, whatever their budgets: where none "
        "was chosen, those of the first sweep that has them there (a, then b)."
    )


def test_a_value_that_means_none_is_no_difference():
    left = named(small("kd"), "a", **{"data.limit": "null"})
    _, _, mark = join(left, named(small("kd"), "b", **{"data.limit": "None"}))
    assert mark == ""


@pytest.mark.parametrize("mixed", [True, False])
def test_different_data_sets_are_always_refused(mixed):
    with pytest.raises(OtkdError, match=r"cifar100 in a and digits in b\. Report each by itself: `otkd report NAME`"):
        join(named(small("kd"), "a"), named(small("kd"), "b", dataset="digits"), mixed=mixed)


def test_searches_that_did_and_did_not_train_winners_again_are_refused():
    sweep = Sweep()
    sweep.student("kd", 70.0, stage="search", axes={"kd.weight": 1})
    left, right = named(sweep, "a"), named(sweep, "b")
    right = right._replace(info=right.info.model_copy(update={"finals": True}))
    with pytest.raises(OtkdError, match="trained again in b and not in a"):
        join(left, right, mixed=True)


@pytest.fixture
def two(monkeypatch, tmp_path) -> Layout:
    """A folder in which the sweeps `a` and `b` (100 epochs, hostile method) are on record."""
    odd = Sweep()
    for seed in range(2):
        odd.student("kd", 72.0 + seed, seed)
        odd.student(NASTY, 73.0 + seed, seed, terms=("ce", "x"))
    records = {
        "a": named(small("student", "kd", "ot"), "a"),
        "b": named(odd, "b", keys="f", **{"train.epochs": "100"}),
    }
    monkeypatch.setattr(reader, "read_sweep", lambda layout, name=None: records[name])
    monkeypatch.setattr(reader, "curves", lambda layout, run_ids, metric: Columns(*np.empty((3, 0), int)))
    monkeypatch.setattr(reader, "files", lambda layout, record: NONE)
    return Layout(tmp_path)


def test_the_report_of_two_stands_in_a_folder_of_its_own_and_says_what_is_mixed(two):
    with pytest.raises(OtkdError, match="different budgets"):
        render.write_report(two, ["a", "b"])
    made = render.write_report(two, ["a", "b"], mixed=True)
    assert made.folder == two.reports / "a+b"
    assert made.problems == ()
    page = made.html.read_text()
    assert "kd [a]" in page
    assert "a and b, side by side" in page
    assert "a asks: Does transport beat KD?" in page
    assert page.index("Mixed budgets: train.epochs is 240 in a and 100 in b") < page.index("<h2>")
    captions = [part.split("</p>")[0] for part in page.split('<p class="caption">')[1:]]
    captions += [part.split("</figcaption>")[0] for part in page.split("<figcaption>")[1:]]
    assert len(captions) > 4
    assert all("Mixed budgets: " in caption for caption in captions)
    for path in made.folder.glob("tables/*.tex"):
        assert "Mixed budgets: " in path.read_text()
    assert "Mixed budgets: " in made.markdown
    assert "&lt;b&gt;a_b &amp; $x$&lt;/b&gt;" in page


def test_one_sweep_named_twice_is_one(two):
    assert render.write_report(two, ["a", "a"]).folder == two.reports / "a"


def test_pairs_of_both_are_there(tmp_path):
    other = Sweep()
    other.student("kd", 60.0, pair=PAIRS[1])
    trials, _, _ = join(named(small("kd"), "a"), named(other, "b", keys="f"))
    assert len(frame.pairs(trials)) == 2
    assert counts(trials) == {"kd": 4}, "on any pair it has the same terms and the same recipe"


def with_data(record: SweepRecord, digest: str = "", **params: str) -> SweepRecord:
    """The record with the digest of its test images, and settings of its data."""
    data = (("test", digest),) if digest else ()
    rows = tuple(row._replace(data=data, params={**row.params, **params}) for row in record.trials)
    return record._replace(trials=rows)


def test_two_names_for_one_trial_in_both_sweeps_stay_two_methods_with_all_seeds():
    def both(seeds: int, keys: str) -> SweepRecord:
        sweep = Sweep()
        for seed in range(5):
            for method in ("kd", "hinton"):
                if method == "kd" or seed < seeds:
                    sweep.student(method, 70.0, seed, terms=("ce", "kd"))
        rows = tuple(
            row._replace(label=row.label.model_copy(update={"key": f"k{row.label.seed}"})) for row in sweep.rows
        )
        record = named(sweep, keys)
        return record._replace(
            trials=rows, info=record.info.model_copy(update={"labels": tuple(r.label for r in rows)})
        )

    trials, _, _ = join(both(3, "a"), both(5, "b"))
    assert counts(trials) == {"kd": 5, "hinton": 5}


def test_each_pair_has_the_baseline_of_its_own_sweep():
    other = Sweep()
    for seed in range(3):
        other.student("alone", 60.0 + seed / 10, seed, pair=PAIRS[1], terms=("ce",))
        other.student("hinton", 61.0 + seed / 7, seed, pair=PAIRS[1], terms=("ce", "kd"))
    trials, joined, _ = join(named(small("student", "kd"), "a"), named(other, "b", keys="f"))
    (table,) = accuracy.table(trials, joined.info)
    second = " ← ".join(PAIRS[1])
    heads = [name for pair, name in table.frame.columns if pair == second and "Δ" in name]
    assert heads == ["Δ to alone, paired", "Δ to hinton, paired"]
    assert table.frame.loc["hinton", (second, heads[0])].startswith("+1.0")
    assert "(student baseline: student or alone; kd baseline: kd or hinton)" in table.caption
    assert list(differences.compared(trials, second)) == ["alone", "hinton"]
    assert (second, "× hinton") in cost.table(trials, joined.info)[0].frame.columns
    told = summary.sentences(trials)
    assert any(words.startswith("Against alone on 1 of 2 pairs, by") for words in told)
    assert any(f"{second}: hinton has" in words and "over alone" in words for words in told)


def test_links_to_runs_stay():
    one, two = (named(small("kd"), name)._replace(experiment="7", ui="http://here:5000") for name in ("a", "b"))
    _, joined, _ = join(one, two)
    assert joined.page("run-x") == one.page("run-x") != ""


def test_other_images_of_one_data_set_are_refused_or_marked():
    left, right = named(small("kd"), "a"), named(small("ot"), "b", keys="f")
    with pytest.raises(OtkdError, match=r"had different data: digest of the test images is 11 in a and 22 in b\."):
        join(with_data(left, "11"), with_data(right, "22"))
    _, _, mark = join(with_data(left, "11"), with_data(right, "22"), mixed=True)
    assert mark.startswith("Mixed data: digest of the test images is 11 in a and 22 in b. A difference")
    more = {"data.options.extra": "True", "train.epochs": "100"}
    with pytest.raises(OtkdError, match=r"had different budgets and data: train\.epochs .*; data\.options\.extra is "):
        join(with_data(left, "11", **{"data.options.extra": "False"}), with_data(right, "22", **more))
    _, _, mark = join(with_data(left, "11"), with_data(right))
    assert mark == "", "a sweep that has not recorded its images is not accused"


@pytest.mark.parametrize(("val", "differ"), [("0.0", False), ("5000.0", True)])
def test_the_seed_of_a_split_counts_where_something_is_split(val, differ):
    sweeps = [
        named(small("kd"), name, keys=name, **{"data.split_seed": seed, "data.val": val}) for name, seed in ("a0", "b1")
    ]
    _, _, mark = join(*sweeps, mixed=True)
    assert ("data.split_seed is 0 in a and 1 in b" in mark) is differ


def test_a_method_with_fewer_seeds_is_not_ranked_and_the_reason_is_told():
    few = Sweep()
    for seed in range(2):
        few.student("ot", 75.0, seed)
    trials, _, _ = join(named(small("student", "kd"), "a"), named(few, "b", keys="f"))
    assert any(
        "Not ranked: ot, 75.00 ± 0.00 % (n = 2); others have n = 3." in told for told in summary.sentences(trials)
    )


def test_figures_and_captions_name_the_baseline_of_each_pair():
    left, right = Sweep(), Sweep()
    for seed in range(2):
        for sweep, pair, alone, kd in ((left, PAIRS[0], "student", "kd"), (right, PAIRS[1], "alone", "hinton")):
            sweep.student(alone, 60.0 + seed / 10, seed, pair=pair, terms=("ce",))
            sweep.student(kd, 61.0 + seed / 7, seed, pair=pair, terms=("ce", "kd"))
            for weight in (1, 2):
                axes = {"transport.weight": weight}
                sweep.student("ot", 62.0 + weight + seed / 5, seed, pair, terms=("ce", "transport"), axes=axes)
        right.student("hinton 4", 61.5, seed, pair=PAIRS[1], terms=("ce", "kd"))
    trials, joined, _ = join(named(left, "a"), named(right, "b", keys="f"))
    second = " ← ".join(PAIRS[1])
    (table,) = ablation.table(trials, joined.info)
    assert [name.split(",")[0] for pair, name in table.frame.columns if "Δ" in name] == [
        "Δ test to student",
        "Δ test to alone",
    ]
    assert table.frame[f"ot on {second}"].iloc[0, 1].startswith("+3.05")
    drawn = {
        name: plugins.load("plots", name) for name in ("accuracy", "differences", "ablation", "confusion_difference")
    }
    figure = drawn["accuracy"].figure(trials, None, joined.info)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert ["dotted: student 60.05" in titles[0], "dotted: alone 60.05" in titles[1]] == [True, True]
    told = " The baseline hinton is the first listed of 2 methods and settings with its terms."
    to_kd = {one.title: one.caption for one in differences.table(trials, joined.info)}
    for caption in (
        to_kd[f"To hinton, {second}"],
        accuracy.table(trials, joined.info)[0].caption,
        drawn["differences"].caption(trials, None),
        drawn["ablation"].caption(trials, None),
    ):
        assert caption.endswith(told)
        assert caption.count("first listed") == 1
    others = (drawn[name].caption(trials, None) for name in ("accuracy", "confusion_difference"))
    for caption in (table.caption, *others):
        assert "first listed" not in caption, "the student alone of each pair is the only one there"


def test_a_baseline_that_is_the_first_of_more_on_one_pair_is_said_to_be_so_there():
    sweep = small("student", "kd")
    for name in ("kd", "hinton"):
        sweep.student(name, 70.0, pair=PAIRS[1], terms=("ce", "kd"))
    trials = frame.trials(sweep.record())
    told = "The baseline kd is the first listed of 2 methods and settings with its terms"
    assert accuracy.table(trials, None)[0].caption.endswith(f" {told} on {' ← '.join(PAIRS[1])}.")
    assert "first listed" not in "".join(one.caption for one in differences.table(trials, None) if PAIR in one.title)
