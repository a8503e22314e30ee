"""Tables against figures computed here by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from report_sweeps import PAIRS, Sweep, full_sweep

from otkd.core import names, plugins
from otkd.core.errors import OtkdError
from otkd.report import frame, references, stats
from otkd.report.formats import latex, markdown
from otkd.report.tables import (
    ablation,
    accuracy,
    agreement,
    calibration,
    compression,
    cost,
    diagnostics,
    differences,
    failures,
    published,
    ranking,
    ranks,
)

PAIR = "wrn_16_2 ← wrn_40_2"
LAST = f"{PAIR}, test top-1 %, last epoch, n = 3"


@pytest.fixture
def small() -> Sweep:
    """Three seeds; `ot` diverged on seed 1 and misses seed 2."""
    sweep = Sweep()
    sweep.teacher("wrn_40_2", 75.61)
    for seed, (alone, kd) in enumerate([(73.0, 74.0), (73.5, 74.1), (72.4, 74.2)]):
        sweep.student("student", alone, seed)
        sweep.student("kd", kd, seed, seconds=14.0)
    sweep.student("ot", 75.0, 0, seconds=21.0)
    sweep.student("ot", seed=1, status="diverged")
    sweep.missing("ot", 2)
    return sweep


def tables(plugin, sweep):
    record = sweep.record()
    return plugin.table(frame.trials(record), record.info)


def test_accuracy_cells_say_mean_spread_n_and_why_one_is_lacking(small):
    (table,) = tables(accuracy, small)
    column = table.flat()[f"{LAST} unless stated"]
    assert column.to_dict() == {
        "teacher": "75.61 (n = 1, no spread)",
        "student": "72.97 ± 0.55",
        "kd": "74.10 ± 0.10",
        "ot": "75.00 (n = 1, no spread; diverged ×1, missing ×1)",
    }
    assert "240 epochs" in table.caption


def test_differences_are_paired_by_seed(small):
    (table,) = tables(accuracy, small)
    to_student = np.array([1.0, 0.6, 1.8])
    flat = table.flat()
    expected = f"+{to_student.mean():.2f} ± {to_student.std(ddof=1):.2f}"
    assert flat.loc["kd", f"{PAIR}, Δ to student, paired"] == expected
    assert flat.loc["ot", f"{PAIR}, Δ to kd, paired"] == "+1.00 (n = 1, no spread)"
    assert flat.loc["student", f"{PAIR}, Δ to student, paired"] == "baseline"
    assert flat.loc["student", f"{PAIR}, Δ to kd, paired"].startswith("−1.13 ± ")


def test_bold_is_the_best_of_those_that_lost_no_seed(small):
    (table,) = tables(accuracy, small)
    assert [table.frame.index[row] for row, _ in table.bold] == ["kd"]
    assert "**74.10 ± 0.10**" in markdown(table)
    assert r"\best 74.10 \pm 0.10" in latex(table)


def test_csv_numbers_equal_numpy(small):
    (table,) = tables(accuracy, small)
    row = table.data.set_index("method").loc["student"]
    values = [73.0, 73.5, 72.4]
    np.testing.assert_allclose([row["mean"], row["std"], row["n"]], [np.mean(values), np.std(values, ddof=1), 3])
    kd = table.data.set_index("method").loc["kd"]
    np.testing.assert_allclose(
        [kd["delta_student_mean"], kd["delta_student_std"]], [3.4 / 3, np.std([1, 0.6, 1.8], ddof=1)]
    )
    assert table.data.set_index("method").loc["ot", "not_counted"] == "diverged ×1, missing ×1"


def test_one_seed_has_no_spread_and_the_caption_says_so():
    sweep = Sweep()
    sweep.student("student", 70.0)
    sweep.student("ot", 71.0)
    (table,) = tables(accuracy, sweep)
    flat = table.flat()
    assert flat.loc["ot", f"{PAIR}, test top-1 %, last epoch, n = 1"] == "71.00"
    assert "One seed: no spread" in table.caption
    assert "no kd baseline" in table.caption
    assert not any("Δ to kd" in column for column in flat)
    assert flat.iloc[0, 0] == "— (not in the sweep)", "no teacher on record"


def test_all_diverged_leaves_a_dash_with_the_reason():
    sweep = Sweep()
    for seed in range(2):
        sweep.student("student", 70.0 + seed, seed)
        sweep.student("ot", seed=seed, status="diverged")
    (table,) = tables(accuracy, sweep)
    assert table.flat().loc["ot"].iloc[0] == "— (diverged ×2)"


def test_a_finished_trial_without_the_figure_is_not_hidden():
    sweep = Sweep()
    sweep.student("student", 70.0)
    sweep.student("ot")
    (table,) = tables(accuracy, sweep)
    assert table.flat().loc["ot"].iloc[0] == "— (no figure ×1)"


def test_the_teacher_may_be_told_by_its_students():
    sweep = Sweep()
    for seed in range(2):
        sweep.student("kd", 70.0, seed, **{names.TEACHER + names.test("last", "top1"): 80.0})
    (table,) = tables(accuracy, sweep)
    assert table.flat().loc["teacher"].iloc[0].startswith("80.00")


def test_best_on_validation_is_a_second_table_where_images_were_held_out():
    last, best = tables(accuracy, full_sweep(val=True))
    assert (last.name, best.name) == ("accuracy", "accuracy-best")
    assert any("best epoch on val" in column for column in best.flat())
    assert len(tables(accuracy, full_sweep())) == 1


def ablated(val: bool = False) -> Sweep:
    sweep = Sweep(val="5000.0" if val else "0.0")
    for seed in range(2):
        sweep.student("student", 70.0, seed)
        for epsilon, top1 in ((0.25, 71.0), (0.01, 72.0)):
            for weight in (1, 10):
                axes = {"transport.solver.epsilon": epsilon, "transport.weight": weight}
                held = {names.BEST_VAL_TOP1: top1} if val else {}
                sweep.student("ot", top1 + seed + weight / 10, seed, axes=axes, **held)
    return sweep


def test_ablation_one_table_per_axis_in_the_order_of_the_grid():
    epsilon, weight = tables(ablation, ablated())
    assert list(epsilon.frame.index) == ["0.25", "0.01"]
    values = [72.1, 73.1, 73.0, 74.0]
    shown = epsilon.flat().loc["0.01", f"ot on {PAIR}, test top-1 %, last epoch, n = 4"]
    assert shown == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert "Averaged over transport.weight (1, 10)" in epsilon.caption
    assert "tune on the test set" in epsilon.caption
    assert epsilon.flat().loc["0.01"].iloc[1].startswith("+3.05")
    assert weight.name == "ablation-transport-weight"


def test_ablation_shows_validation_first_where_there_is_one():
    epsilon, _ = tables(ablation, ablated(val=True))
    assert "val top-1 %" in epsilon.flat().columns[0]
    assert "Choose a setting by the figures of val; those of test are for reading." in epsilon.caption


def test_no_axis_no_ablation():
    assert tables(ablation, full_sweep()) == []


def test_cost_is_held_against_kd(small):
    (table,) = tables(cost, small)
    flat = table.flat()
    assert flat[f"{PAIR}, × kd"].to_dict() == {"student": "0.71×", "kd": "1.00×", "ot": "1.50×"}
    assert flat.loc["ot"].iloc[0] == "21.0 (n = 1, no spread; diverged ×1, missing ×1)"
    assert "cohort" in table.caption
    assert "cpu (8 threads)" in table.caption
    np.testing.assert_allclose(table.data["overhead"], [10 / 14, 1.0, 1.5])


def test_cost_says_what_the_memory_figure_is(small):
    (table,) = tables(cost, small)
    for said in (
        "on a CPU, the worker process's peak so far",
        "never falls",
        "on CUDA it is the device allocator's peak",
    ):
        assert said in table.caption


def test_cost_without_kd_is_held_against_the_student():
    sweep = Sweep()
    sweep.student("student", 70.0, seconds=10)
    sweep.student("ot", 70.0, seconds=15)
    (table,) = tables(cost, sweep)
    assert table.flat()[f"{PAIR}, × student"].tolist() == ["1.00×", "1.50×"]


def test_compression_is_a_ratio_to_the_teacher(small):
    (table,) = tables(compression, small)
    assert table.frame.loc["wrn_40_2", "parameters"] == "2.20 M"
    assert table.frame.loc["wrn_16_2", "parameters"] == "700.00 k (3.14×)"
    assert table.frame.loc["wrn_16_2", "latency"] == "7.00 ms (3.14×)"
    np.testing.assert_allclose(table.data[f"{names.PARAMS} ratio"], [1, 22 / 7])


def test_a_method_that_deploys_more_has_a_size_of_its_own():
    sweep = Sweep()
    sweep.teacher("wrn_40_2")
    for method in ("student", "kd"):
        sweep.student(method, 70.0)
    sweep.student("simkd", 70.0, terms=("simkd",), **{names.PARAMS: 1.1e6})
    (table,) = tables(compression, sweep)
    assert table.frame["parameters"].to_dict() == {
        "wrn_40_2": "2.20 M",
        "wrn_16_2": "700.00 k (3.14×)",
        "wrn_16_2, simkd": "1.10 M (2.00×)",
    }


def test_each_pair_has_its_own_teacher():
    sweep = Sweep()
    for title, top1 in (("resnet20 (mine)", 19.0), ("resnet20 (other)", 10.0)):
        sweep.teacher("resnet20", top1, title)
        sweep.student("student", 12.0, pair=("resnet8", "resnet20"), taught_by=title)
    (table,) = tables(accuracy, sweep)
    assert table.data.loc[table.data["method"] == "teacher", "mean"].tolist() == [19.0, 10.0]


def test_published_rows_of_known_pairs_keep_rule_and_source():
    (table,) = tables(published, full_sweep())
    kd = table.frame.loc["KD"]
    assert ("74.92", "last epoch", "RepDistiller README") in zip(
        kd["top-1 %"], kd["selection"], kd["source"], strict=True
    )
    assert set(table.frame["pair"]) == {PAIR, "resnet8x4 ← resnet32x4"}
    assert not table.data.duplicated().any()
    assert tables(published, Sweep()) == []


def test_published_figures_match_our_spelling_of_networks():
    sweep = Sweep()
    sweep.student("kd", 70.0, pair=("shufflenet_v1", "resnet32x4"))
    (table,) = tables(published, sweep)
    assert "DKD" in table.frame.index


def test_users_add_published_rows(tmp_path):
    extra = tmp_path / "mine.csv"
    extra.write_text("dataset,teacher,student,method,top1,selection,source\ncifar100,a,b,X,71.5,last epoch,my paper\n")
    assert references.load(extra).iloc[-1]["top1"] == 71.5
    extra.write_text("dataset,teacher\nx,y\n")
    with pytest.raises(OtkdError, match=r"mine\.csv: no column student.* the columns dataset, teacher, .*, source\."):
        references.load(extra)
    extra.write_text("dataset,teacher,student,method,top1,selection,source\na,b,c,d,high,f,g\n")
    with pytest.raises(OtkdError, match=r"mine\.csv: .*'high'.*columns dataset.*top1 is a percentage"):
        references.load(extra)
    with pytest.raises(OtkdError, match=r"absent\.csv: cannot read .* the columns dataset, teacher, .*, source\."):
        references.load(tmp_path / "absent.csv")


def test_shipped_figures_are_sound():
    known = references.load()
    assert tuple(known.columns) == references.COLUMNS
    assert known["top1"].between(50, 90).all()
    assert (known["selection"] != "").all()
    assert (known["source"] != "").all()


def test_summaries_leave_out_what_is_no_number():
    assert stats.summarise([1.0, math.nan, math.inf, 3.0]) == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert stats.summarise([]).n == 0
    assert stats.show(stats.summarise([])) == "—"


def test_one_pair_may_lack_a_method():
    sweep = full_sweep()
    sweep.student("extra", 74.0, pair=PAIRS[0], terms=("ce", "crd"))
    (table,) = tables(accuracy, sweep)
    assert table.frame.iloc[-1, 3] == "— (not in the sweep)"


def test_ranking_goes_by_mean_accuracy_and_by_seconds():
    sweep = Sweep()
    sweep.teacher("wrn_40_2", 75.61)
    scores = {"student": (70.0, 70.2), "kd": (74.0, 74.4), "ot": (74.0, 74.4), "at": (72.0, 73.9), "emd": (71.0, 74.3)}
    seconds = {"student": 5.0, "kd": 10.0, "ot": 12.0, "at": 11.0, "emd": 30.0}
    for name, values in scores.items():
        for seed, value in enumerate(values):
            terms = {"student": ("ce",), "kd": ("ce", "kd")}.get(name, ("ce", "transport"))
            sweep.student(name, value, seed, terms=terms, seconds=seconds[name])
    (table,) = tables(ranking, sweep)
    flat = table.flat()
    assert list(flat.index) == ["kd", "ot", "at", "emd", "student"]
    assert list(flat["rank by accuracy"]) == ["1", "1", "3", "4", "5"]
    assert flat["rank by cost"].to_dict() == {"student": "1", "kd": "2", "at": "3", "ot": "4", "emd": "5"}
    # leads, seed by seed: kd - ot 0, 0; ot - at 2.0, 0.5; at - emd 1.0, -0.4; emd - student 1.0, 4.1
    assert list(flat["apart from the next"]) == ["within spread", "yes", "within spread", "yes", ""]
    assert flat.loc["emd", "× kd"] == "3.00"
    assert "student, the floor" in table.caption


def test_ranking_leaves_out_what_has_no_figure_and_too_few_methods(small):
    assert tables(ranking, small) == []


def test_differences_say_what_chance_can_explain(small):
    small.student("kd", 74.4, 3)
    small.student("student", 73.0, 3)
    table, to_kd = tables(differences, small)
    flat = table.flat()
    delta = np.array([1.0, 0.6, 1.8, 1.4])
    half = 3.182446305284263 * delta.std(ddof=1) / 2  # the t distribution's 0.975 quantile with 3 degrees of freedom
    assert flat.loc["kd", "Δ points, n = 4 unless stated"] == f"+{delta.mean():.2f} ± {delta.std(ddof=1):.2f}"
    assert flat.loc["kd", "95 %, t"] == f"[+{delta.mean() - half:.2f}, +{delta.mean() + half:.2f}]"
    assert flat.loc["kd", "p, Wilcoxon"] == "0.125"
    assert list(flat.index) == ["kd", "ot"]
    assert list(to_kd.flat().index) == ["student", "ot"]
    assert flat.loc["ot", "Δ points, n = 4 unless stated"] == "+2.00 (n = 1, no spread)"
    assert flat.loc["ot", "95 %, t"] == stats.DASH
    assert "With 4 seeds Wilcoxon's p cannot be below 0.125" in table.caption
    row = table.data.iloc[0]
    assert row["p_holm"] == pytest.approx(row["p_t"])  # of two methods only one has a test
    assert latex(table)
    assert markdown(table)


def test_one_seed_has_no_differences_to_judge():
    sweep = Sweep()
    for method in ("student", "kd"):
        sweep.student(method, 74.0)
    assert tables(differences, sweep) == []


def test_ranks_need_two_pairs_and_leave_out_what_is_not_on_each():
    sweep = Sweep()
    other = ("resnet8x4", "resnet32x4")
    for pair, shift in ((PAIRS[0], 0.0), (other, -1.0)):
        for method, top1 in (("student", 73.0), ("kd", 74.0), ("ot+kd", 75.0)):
            sweep.student(method, top1 + shift, pair=pair)
    assert tables(ranks, full_sweep())[0].frame.index[0] == "ot+kd"
    sweep.student("ot", 76.0)
    (table,) = tables(ranks, sweep)
    assert table.frame["average rank"].to_dict() == {"ot+kd": "1.00", "kd": "2.00", "student": "3.00"}
    assert "Left out, for want of a figure with all seeds on some pair: ot." in table.caption
    assert table.frame.columns[1] == "test top-1 %, last epoch, mean over n = 2 pairs"
    assert table.data["p_friedman"].iloc[0] == pytest.approx(math.exp(-2))  # chi-squared of 4 with 2 degrees of freedom
    assert "no difference" in table.caption
    one_pair = Sweep()
    for method in ("student", "kd", "ot"):
        one_pair.student(method, 74.0)
    assert tables(ranks, one_pair) == []


def test_agreement_stands_beside_accuracy():
    sweep = Sweep()
    for seed, share in enumerate((80.0, 82.0)):
        sweep.student("kd", 74.0, seed, **{names.test("last", "agreement"): share})
        sweep.student("ot", 75.0, seed)
    (table,) = tables(agreement, sweep)
    assert "KL" not in table.caption, "none was recorded"
    shares = table.flat()[f"{PAIR}, agreement %, last epoch, n = 2"]
    assert shares.to_dict() == {"kd": "81.00 ± 1.41", "ot": "— (no figure ×2)"}
    figures = table.flat()[f"{PAIR}, test top-1 %, last epoch, n = 2"]
    assert figures.to_dict() == {"kd": "74.00 ± 0.00", "ot": "75.00 ± 0.00"}
    assert tables(agreement, full_sweep()) == []


def test_divergence_from_the_teacher_stands_beside_agreement():
    sweep = Sweep()
    for seed, value in enumerate((0.5, 0.7)):
        sweep.student("kd", 74.0, seed, **{names.test("last", "agreement"): 80.0, names.test("last", "kl"): value})
        sweep.student("ot", seed=seed, status="diverged", **{names.test("last", "agreement"): 80.0})
    sweep.student("student", 70.0, **{names.test("last", "agreement"): 75.0})
    (table,) = tables(agreement, sweep)
    assert table.flat()[f"{PAIR}, KL, nats, last epoch, n = 2"].to_dict() == {
        "kd": "0.6000 ± 0.1414",
        "ot": "— (diverged ×2)",
        "student": "— (no figure ×1)",
    }
    assert table.data.loc[0, ["kl_mean", "kl_n", "top1_mean"]].tolist() == [0.6, 2, 74.0]


def test_calibration_marks_the_lowest_error():
    sweep = Sweep()
    ece, loss = (names.test("last", name) for name in ("ece", "loss"))
    for seed in (0, 1):
        sweep.student("kd", 74.0, seed, **{ece: 10.0 + seed, loss: 1.25, names.TEACHER + ece: 4.0})
        sweep.student("ot", 75.0, seed, **{ece: 6.0, loss: 1.5})
    (table,) = tables(calibration, sweep)
    errors = table.flat()[f"{PAIR}, test calibration error %, last epoch, n = 2"]
    assert errors.to_dict() == {
        "teacher": "4.00 (n = 1, no spread)",
        "kd": "10.50 ± 0.71",
        "ot": "6.00 ± 0.00",
    }
    losses = table.flat()[f"{PAIR}, test loss, last epoch, n = 2"]
    assert losses["teacher"] == "— (not in the sweep)", "nor is its loss on its students' record"
    assert table.bold == {(2, 0), (1, 1)}, "ot by error, kd by loss"
    assert table.apart == 1
    assert tables(calibration, full_sweep()) == []


def test_terms_tell_of_themselves():
    sweep = Sweep()
    for seed, (share, error) in enumerate([(1.0, 1e-4), (0.5, 3e-4)]):
        told = {names.term("transport", "converged"): share, names.term("transport", "marginal_error"): error}
        sweep.student("ot", 75.0, seed, **told, **{names.term("transport", "raw"): 3.0})
        sweep.student("kd", 74.0, seed, **{names.term("kd", "raw"): 3.0})
    (table,) = tables(diagnostics, sweep)
    of_two = {"converged, last epoch, n = 2": "0.75", "marginal error, last epoch, n = 2": "0.0002"}
    assert table.frame.to_dict("index") == {"ot": of_two}
    sweep.student("emd", 75.0, terms=("ce", "transport"), **{names.term("transport", "converged"): 1.0})
    (more,) = tables(diagnostics, sweep)
    assert more.frame["converged, last epoch, n = 2 unless stated"].to_dict() == {"ot": "0.75", "emd": "1 (n = 1)"}
    assert more.frame["marginal error, last epoch, n = 2"].to_dict() == {"ot": "0.0002", "emd": "—"}
    assert table.name == "diagnostics-transport"
    assert tables(diagnostics, full_sweep()) == []


def test_what_did_not_finish_is_listed_with_its_reason(small):
    (table,) = tables(failures, small)
    assert table.frame.reset_index().to_numpy().tolist() == [
        ["ot", PAIR, "1", "diverged", ""],
        ["ot", PAIR, "2", "missing", ""],
    ]
    assert "2 trials have no result" in table.caption
    sweep = Sweep()
    sweep.student("kd", 74.0)
    assert tables(failures, sweep) == []


def with_a_lucky_seed(methods: tuple[str, ...]) -> Sweep:
    """Two pairs, two seeds; `ot` has the highest figure of all and lost its other seed."""
    sweep = Sweep()
    for pair in PAIRS:
        for place, method in enumerate(methods):
            for seed in range(2):
                sweep.student(method, 70.0 + place + seed / 10, seed, pair, terms=("ce", method))
        sweep.student("ot", 99.0, 0, pair)
        sweep.student("ot", seed=1, pair=pair, status="diverged")
    return sweep


def test_a_method_that_lost_seeds_has_no_average_rank():
    (table,) = tables(ranks, with_a_lucky_seed(("a", "b", "c")))
    assert table.frame["average rank"].to_dict() == {"c": "1.00", "b": "2.00", "a": "3.00"}
    assert "on some pair: ot." in table.caption
    assert tables(ranks, with_a_lucky_seed(("a", "b"))) == []


def test_a_method_that_lost_seeds_has_no_rank_by_accuracy():
    table, _ = tables(ranking, with_a_lucky_seed(("a", "b", "c")))
    flat = table.flat()
    assert flat["rank by accuracy"].to_dict() == {"c": "1", "b": "2", "a": "3", "ot": ""}
    assert flat["apart from the next"].to_dict() == {"c": "yes", "b": "yes", "a": "", "ot": ""}
    assert flat.loc["ot"].iloc[1] == "99.00 (n = 1, no spread)"
    assert np.isnan(table.data.set_index("method").loc["ot", "rank_accuracy"])


@pytest.mark.parametrize(("pairs", "differ"), [(2, False), (4, True)])
def test_nothing_is_claimed_of_ranks_that_friedman_finds_alike(pairs, differ):
    sweep = Sweep()
    for index in range(pairs):
        for place, method in enumerate(("student", "kd", "ot")):
            sweep.student(method, 70.0 + place, pair=(f"small{index}", f"big{index}"))
    (table,) = tables(ranks, sweep)
    assert table.data["p_friedman"].iloc[0] == pytest.approx(math.exp(-pairs))  # chi-squared of 2 × pairs, 2 degrees
    assert ("no difference" not in table.caption) is differ
    told = table.frame["p, same as ot (Nemenyi)"].to_dict()
    assert (stats.DASH not in told.values()) is differ
    assert told["ot"] == ""
    assert table.data["p_nemenyi_to_best"].notna().any() == differ
    record = sweep.record()
    drawn = plugins.load("plots", "ranks").figure(frame.trials(record), None, record.info)
    assert (drawn is not None) is differ


def test_methods_that_tie_everywhere_are_not_called_different():
    sweep = Sweep()
    for pair in (PAIRS[0], ("resnet8x4", "resnet32x4")):
        for method in ("student", "kd", "ot"):
            sweep.student(method, 74.0, pair=pair)
    (table,) = tables(ranks, sweep)
    assert "no difference" in table.caption


def test_a_teacher_that_diverged_is_listed():
    sweep = Sweep()
    sweep.teacher("wrn_40_2")
    lost = sweep.rows.pop()
    sweep.rows.append(lost._replace(status="diverged", metrics={}))
    sweep.missing("kd", 0)
    (table,) = tables(failures, sweep)
    assert table.frame["status"].tolist() == ["diverged", "missing"]


def test_a_difference_that_is_in_no_test_is_counted_and_one_without_a_common_seed_is_named(small):
    small.student("ot+kd", 76.0, 7)
    table, _ = tables(differences, small)
    assert (
        "corrected for the 1 test of the table (1 of 2 methods cannot be tested: one common seed, or" in table.caption
    )
    assert "Not in the table, for want of a seed that both finished: ot+kd." in table.caption
