"""What a reader may choose: the figure, the baseline, which tables, in which forms."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from report_sweeps import PAIRS, Sweep, full_sweep, histories
from scipy import stats as scipy_stats

from otkd.core import names, plugins
from otkd.core.errors import OtkdError, StorageError
from otkd.report import choice, frame, inference, render, summary
from otkd.report.options import FORMATS, checked
from otkd.report.tables import accuracy, cost, differences, ranks

LOSS = names.test("last", "loss")
LOSSES = {"student": (1.31, 1.28, 1.35), "kd": (1.02, 1.05, 1.01), "ot": (1.13, 1.08, 1.15)}


def with_losses() -> Sweep:
    """Three methods on two pairs; accuracy rises with the loss, so an order by the wrong one is seen."""
    sweep = Sweep()
    for shift, pair in enumerate(PAIRS):
        for method, losses in LOSSES.items():
            for seed, loss in enumerate(losses):
                sweep.student(method, 50 + 10 * loss, seed, pair, **{LOSS: loss + shift})
    return sweep


def chosen(sweep: Sweep, **asked):
    return checked(**asked).applied(frame.trials(sweep.record()))


def build(sweep: Sweep, folder, **asked) -> render.Report:
    record = sweep.record()
    return render.build(record, frame.epochs(record, histories(record)), folder, options=checked(**asked))


def written(report: render.Report) -> set[str]:
    return {path.relative_to(report.folder).as_posix() for path in report.paths}


def test_a_loss_is_better_where_it_is_lower():
    trials = chosen(with_losses(), metric="loss")
    (table,) = accuracy.table(trials, None)
    assert table.title == "Test loss, last epoch"
    flat = table.flat()
    assert flat.loc["kd"].iloc[0] == f"{np.mean(LOSSES['kd']):.4f} ± {np.std(LOSSES['kd'], ddof=1):.4f}"
    rows = {row for row, column in table.bold if column == 0}
    assert [flat.index[row] for row in rows] == ["kd"]
    assert "Bold: lowest mean" in table.caption
    (pair, *_) = frame.pairs(trials)
    kd, ot = differences.compared(trials, pair)["student"]
    assert kd.found.summary.mean == pytest.approx(np.mean(LOSSES["kd"]) - np.mean(LOSSES["student"]))
    assert (kd.found.better, ot.found.better) == (1.0, 1.0), "every run has a lower loss than any of the baseline"
    delta = np.subtract(LOSSES["kd"], LOSSES["student"])
    assert kd.found.p_t == pytest.approx(scipy_stats.ttest_1samp(delta, 0).pvalue)
    assert list(ranks.ranked(trials, ranks.means(trials)).average.index) == ["kd", "ot", "student"]
    told = summary.sentences(trials)
    assert "kd has the lowest mean test loss with the last epoch's weights, 1.0267 ± 0.0208 (n = 3)" in told[1]
    assert any(words.startswith("Against student") and "better: kd by 0.2867" in words for words in told)
    assert not any("points" in words or "%" in words.split("at 5 %")[0] for words in told[1:])


@pytest.mark.parametrize("metric", ["loss", "test/last/top1", "top5"])
def test_every_table_and_figure_takes_every_metric(metric, tmp_path):
    sweep = with_losses()
    for row in sweep.rows:
        row.metrics[names.test("last", "top5")] = row.metrics[names.test("last", "top1")] + 20
    made = build(sweep, tmp_path, metric=metric)
    assert made.problems == ()
    found = choice.named(metric)
    for name in ("accuracy", "ranks"):
        assert found.name in (tmp_path / f"tables/{name}.tex").read_text()
    page = made.html.read_text()
    assert found.head in page
    assert (found.sentence.replace("'", "&#39;")) in page
    data = pd.read_csv(tmp_path / "tables/accuracy.csv")
    assert set(data["metric"]) == {found.column}


def test_the_rule_of_a_metric_is_in_its_caption():
    for metric, rule in (
        ("test/best/top1", "weights that were best on held-out validation images"),
        ("val/best/top1", "so it reads high"),
        ("test/last/top1", "none were picked by looking at test images"),
    ):
        (table, *_) = accuracy.table(chosen(full_sweep(val=True), metric=metric), None)
        assert rule in table.caption
    assert len(accuracy.table(chosen(full_sweep(val=True)), None)) == 2, "by default both rules"


def test_unknown_and_unmeasured_metrics_are_refused():
    with pytest.raises(
        OtkdError, match=r"no metric 'test/last/topl'; there is test/last/top1, .*Did you mean 'test/last"
    ):
        checked(metric="test/last/topl")
    with pytest.raises(
        OtkdError, match=r"no student of this sweep has val/best/top1; there is test/last/top1\. Nothing"
    ):
        chosen(full_sweep(), metric="val/best/top1")
    assert chosen(Sweep(), metric="loss").empty, "a sweep without figures is no reason"


def test_a_baseline_takes_the_place_of_those_that_terms_tell():
    trials = chosen(full_sweep(), baseline="ot")
    (table,) = accuracy.table(trials, None)
    flat = table.flat()
    deltas = [column for column in flat if "Δ" in column]
    assert [column.split("Δ ")[1] for column in deltas] == ["to ot, paired"] * 2
    assert flat.loc["ot", deltas[0]] == "baseline"
    assert "chosen baseline: ot" in table.caption
    assert list(differences.compared(trials, frame.pairs(trials)[0])) == ["ot"]
    rows = table.data.set_index(["pair", "method"])
    values = frame.students(trials).set_index(["pair", "variant", "seed"]).sort_index()[choice.DEFAULT.column]
    pair = frame.pairs(trials)[1]
    delta = values[pair, "kd"] - values[pair, "ot"]
    assert rows.loc[(pair, "kd"), "delta_chosen_mean"] == pytest.approx(delta.mean())


def test_a_baseline_is_named_by_its_method_where_that_has_one_setting():
    sweep = Sweep()
    sweep.student("one", 70.0, terms=("ce", "a"), axes={"a.weight": 3})
    for weight in (1, 2):
        sweep.student("ot", 70.0 + weight, axes={"transport.weight": weight})
    assert chosen(sweep, baseline="one").attrs[choice.BASELINE] == "one (weight=3)"
    assert chosen(sweep, baseline="ot (weight=2)").attrs[choice.BASELINE] == "ot (weight=2)"
    with pytest.raises(OtkdError, match=r"several settings; name one of 'ot \(weight=1\)', 'ot \(weight=2\)'"):
        chosen(sweep, baseline="ot")
    with pytest.raises(OtkdError, match=r"no method 'onne'; there is one \(weight=3\), ot"):
        chosen(sweep, baseline="onne")


SUFFIXES = {
    "html": {"report.html"},
    "csv": {"trials.csv", "tables/accuracy.csv"},
    "tex": {"tables/accuracy.tex"},
    "parquet": {"tables/accuracy.parquet"},
    "json": {"tables/accuracy.json"},
    "png": {"figures/accuracy.png"},
    "pdf": {"figures/accuracy.pdf"},
    "md": {"report.md", "figures/accuracy.png"},
}


@pytest.mark.parametrize("form", FORMATS)
def test_a_form_alone(form, tmp_path):
    made = build(with_losses(), tmp_path, formats=[form], only=["accuracy"])
    expected = SUFFIXES[form] | {"summary.json"}
    assert written(made) == expected
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == expected


def test_what_is_not_asked_for_does_not_stay_behind(tmp_path):
    build(with_losses(), tmp_path)
    (tmp_path / "report.pdf").write_bytes(b"%PDF of an earlier report")
    (tmp_path / "tables/mine.txt").write_text("mine")
    build(with_losses(), tmp_path, formats=["csv", "tex"], only=["cost", "differences"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert "report.pdf" not in left
    assert "report.html" not in left
    assert "tables/mine.txt" in left
    stems = {path.split("/")[1].split(".")[0].split("-")[0] for path in left if path.startswith("tables/")}
    assert stems == {"cost", "differences", "mine"}


def test_unknown_forms_and_tables_are_refused_with_the_nearest():
    with pytest.raises(OtkdError, match=r"no format 'htm'; there is html, md, .*Did you mean 'html'\?"):
        checked(formats=["htm"])
    with pytest.raises(
        OtkdError, match=r"no table or figure 'acuracy'; there is ablation, accuracy, .*mean 'accuracy'"
    ):
        checked(only=["cost", "acuracy"])


def test_json_is_a_table_as_mlflow_writes_it(tmp_path):
    made = build(full_sweep(), tmp_path, formats=["json", "csv"], only=["accuracy", "failures"])
    found = json.loads((tmp_path / "tables/accuracy.json").read_text())
    assert set(found) == {"columns", "data"}
    as_frame = pd.DataFrame(found["data"], columns=found["columns"])
    as_text = pd.read_csv(tmp_path / "tables/accuracy.csv").fillna({"not_counted": ""})
    pd.testing.assert_frame_equal(as_frame, as_text, check_dtype=False, rtol=1e-12)
    assert None in as_frame["std"].astype(object).where(as_frame["std"].notna(), None).tolist(), (
        "one seed has no spread"
    )
    assert "NaN" not in (tmp_path / "tables/accuracy.json").read_text()
    assert tmp_path / "tables/failures.json" in made.paths


@pytest.mark.parametrize("what", ["folder", "old table"])
def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(what, tmp_path, monkeypatch):
    target = tmp_path / "reports"
    build(with_losses(), target, only=["accuracy", "cost"])
    if what == "folder":
        target = tmp_path / "file" / "reports"
        (tmp_path / "file").write_text("in the way")  # permissions bind nobody who runs as root
    else:

        def refuse(self, missing_ok=False):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(type(target), "unlink", refuse)
    with pytest.raises(
        StorageError, match=rf"cannot write the report to {target}: (Not a dir|Perm).*`otkd report --to FOLDER`"
    ):
        build(with_losses(), target, only=["accuracy"])


def test_welch_of_runs_that_share_no_seed():
    from otkd.report.stats import Cell

    left, right = [1.0, 2.5, 2.0, 3.0, 1.5], [0.5, 1.0, 0.75]
    cells = [
        Cell(pd.Series(values, index=range(start, start + len(values))), "")
        for start, values in ((0, left), (9, right))
    ]
    mean, interval, p = inference.unpaired(*cells)
    variances = [np.var(values, ddof=1) / len(values) for values in (left, right)]
    error = np.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (left, right), strict=True))
    assert mean == pytest.approx(2.0 - 0.75)
    assert interval.high - mean == pytest.approx(scipy_stats.t.ppf(0.975, freedom) * error)
    assert p == pytest.approx(2 * scipy_stats.t.sf(mean / error, freedom))
    assert np.isnan(inference.unpaired(cells[0], Cell(pd.Series([1.0]), ""))[2])


def test_a_baseline_that_is_but_the_first_of_several_settings_is_said_to_be():
    sweep = Sweep()
    for seed in range(2):
        sweep.student("student", 70.0 + seed, seed)
        sweep.student("ot", 72.0 + seed / 2, seed)
        for temperature in (2, 4):
            sweep.student("kd", 71.0 + seed / temperature, seed, axes={"kd.temperature": temperature})
    trials, told = (
        chosen(sweep),
        "The baseline kd (temperature=2) is the first listed of 2 methods and settings with its terms.",
    )
    to_student, to_kd = differences.table(trials, None)
    for table in (to_kd, *accuracy.table(trials, None), *cost.table(trials, None)):
        assert table.caption.endswith(told)
    assert "first listed" not in to_student.caption
    for name in ("differences", "ablation"):
        assert plugins.load("plots", name).caption(trials, None).endswith(told)
    assert "first listed" not in plugins.load("plots", "accuracy").caption(trials, None), (
        "it is held against the student"
    )
    named = chosen(sweep, baseline="kd (temperature=2)")
    assert not any("first listed" in table.caption for table in accuracy.table(named, None))


def test_the_case_of_a_baseline_is_no_riddle():
    with pytest.raises(OtkdError, match=r"no method 'OT\+KD'; there is .*Did you mean 'ot\+kd'\?"):
        chosen(full_sweep(), baseline="OT+KD")
