"""Every view of the page, held against the report's tables, scipy, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from report_sweeps import OFFSETS, PAIRS, Sweep, full_sweep
from scipy import stats as scipy_stats

from dashboards import charts, source
from dashboards.page import READ, VIEWS
from dashboards.views import overview
from otkd.core import names
from otkd.core.confusion import Confusion
from otkd.core.errors import TrackingError
from otkd.core.records import Moment, Picture, Pictures
from otkd.report import choice, frame
from otkd.report.choice import METRICS
from otkd.report.tables import accuracy, cost

HOSTILE = "ot <script>alert(1)</script> $x$ _a_ **b** :smile: [c](d) `e` & |"
FIRST, SECOND = (f"{student} ← {teacher}" for student, teacher in PAIRS)


def tables(page: Any) -> list[list[list[str]]]:
    """The tables on the page as texts: rows of cells, heads among them."""
    parsed = [ElementTree.fromstring(body) for body in page.html if "<table" in body]
    return [[["".join(cell.itertext()) for cell in row] for row in one.iter("tr")] for one in parsed]


def hostile_sweep() -> Any:
    sweep = Sweep(question=HOSTILE)
    sweep.teacher("wrn_40_2")
    for seed in range(3):
        sweep.student("student", 70.0 + seed, seed)
        sweep.student("kd", 71.0 + seed**2, seed)
        for value in (0.1, 1.0):
            axes = {f"transport.{HOSTILE}": value}
            sweep.student(HOSTILE, 72.0 + seed * value, seed, terms=("ce", "transport"), axes=axes)
    sweep.student("kd", seed=3, status="failed", reason=HOSTILE)
    return sweep.record()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens(page: Callable[..., Any], view: str) -> None:
    opened = page(full_sweep(val=True).record())
    opened.open(view)
    assert opened.app.radio(key="view").value == view
    assert any('otkd-title">demo<' in body for body in opened.html)
    assert len(opened.html) > 2, "the view is empty"


@pytest.mark.parametrize("view", VIEWS)
def test_a_sweep_that_has_only_begun_opens(page: Callable[..., Any], view: str) -> None:
    sweep = Sweep()
    sweep.missing("student", 0)
    opened = page(sweep.record())
    opened.open(view)
    assert opened.app.radio(key="view").value == view
    assert not opened.app.exception


@pytest.mark.parametrize("view", VIEWS)
def test_names_are_shown_as_they_are(page: Callable[..., Any], view: str) -> None:
    opened = page(hostile_sweep())
    app = opened.open(view)
    for body in opened.html:
        ElementTree.fromstring(body)  # well-formed: nothing of a name is markup
        assert "<script" not in body
    marked = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info, *app.success, *app.title, *app.header]
    read_as_markdown = [str(one.value) for one in marked] + [one.label for one in app.metric]
    read_as_markdown += [word for one in app.radio for word in one.options]
    read_as_markdown += [one.label for one in app.expander] + [one.label for one in app.button]
    assert not [word for word in read_as_markdown if "alert" in word or ":smile:" in word]


def test_the_leaderboard_is_the_reports_table(page: Callable[..., Any]) -> None:
    record = full_sweep().record()
    opened = page(record)
    opened.open("Leaderboard")
    (table,) = accuracy.table(frame.trials(record, opened.epochs), record.info)
    groups, heads, *rows = tables(opened)[0]
    assert groups == ["", FIRST, SECOND]
    assert heads == ["method", *(word for _, word in table.frame.columns)]
    assert rows == [
        [name, *cells] for name, cells in zip(table.frame.index, table.frame.to_numpy().tolist(), strict=True)
    ]
    assert rows[3][:2] == ["ot", "74.80 (n = 1, no spread; diverged ×1, missing ×1)"]
    assert [body for body in opened.html if 'class="otkd-number otkd-best"' in body]


def test_filters_and_order(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    app = opened.open("Leaderboard")

    def methods() -> list[str]:
        return [row[0] for row in tables(opened)[0][2:]]

    app.multiselect(key="board.pairs").set_value([FIRST])
    app.selectbox(key="board.order").set_value(FIRST)
    opened.run()
    assert tables(opened)[0][0] == ["", FIRST]
    assert methods() == ["teacher", "ot+kd", "ot", "kd", "student"], "by 75.4, 74.8, 74.5, 73.0"
    app.number_input(key="board.n").set_value(2)
    opened.run()
    assert methods() == ["teacher", "ot+kd", "kd", "student"], "ot has one seed"
    app.number_input(key="board.n").set_value(0)
    app.selectbox(key="board.shown").set_value("with a gap")
    opened.run()
    assert methods() == ["teacher", "ot"]
    app.selectbox(key="board.shown").set_value("every method")
    app.multiselect(key="board.methods").set_value(["kd", "ot+kd"])
    opened.run()
    assert methods() == ["teacher", "ot+kd", "kd"]
    app.radio(key="view").set_value("Failures")
    opened.run()
    app.radio(key="view").set_value("Leaderboard")
    opened.run()
    assert methods() == ["teacher", "ot+kd", "kd"], "what was chosen is kept while another view is open"


def test_bold_moves_with_its_row(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    app = opened.open("Leaderboard")
    app.selectbox(key="board.order").set_value(SECOND)
    opened.run()
    (body,) = [body for body in opened.html if "<table" in body]
    rows = list(ElementTree.fromstring(body).iter("tr"))
    bold = {row[0].text for row in rows for cell in row if "otkd-best" in cell.get("class", "")}
    assert bold == {"ot+kd"}


def test_two_methods_are_compared_seed_by_seed(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    app = opened.open("Compare two")
    app.selectbox(key="compare.left").set_value("kd")
    app.selectbox(key="compare.right").set_value("student")
    opened.run()
    kd = 74.5 + np.array(OFFSETS) * 1.4
    student = 73.0 + np.array(OFFSETS) * 2.4
    delta, p = kd - student, scipy_stats.ttest_rel(kd, student).pvalue
    figures, difference, by_seed = tables(opened)
    assert figures[1:] == [
        ["kd", f"{kd.mean():.2f} ± {kd.std(ddof=1):.2f} (n = 3)"],
        ["student", f"{student.mean():.2f} ± {student.std(ddof=1):.2f} (n = 3)"],
    ]
    cells = dict(zip(difference[0], difference[1], strict=True))
    assert cells["Δ points, paired, n = 3"] == f"+{delta.mean():.2f} ± {delta.std(ddof=1):.2f}"
    assert cells["p, paired t"] == f"{p:.3f}"
    low, high = scipy_stats.ttest_rel(kd, student).confidence_interval(0.95)
    assert cells["95 %, t"] == f"[{low:+.2f}, {high:+.2f}]".replace("-", "−")
    assert [row[3] for row in by_seed[1:]] == [f"+{value:.2f}" for value in delta]
    assert any("more than chance explains" in body for body in opened.html) == (p < 0.05)


def test_a_pair_begins_with_its_own_baseline(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    for pair, methods in zip(PAIRS, (("student", "kd", "ot"), ("student", "softer", "ot")), strict=True):
        for method in methods:
            sweep.student(method, 70.0, pair=pair, terms=("ce", "kd") if method == "softer" else None)
    opened = page(sweep.record())
    app = opened.open("Compare two")
    assert app.selectbox(key="compare.right").value == "kd"
    app.selectbox(key="compare.pair").set_value(SECOND)
    opened.run()
    assert app.selectbox(key="compare.right").value == "softer"


def test_one_common_seed_proves_nothing(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    app = opened.open("Compare two")
    app.selectbox(key="compare.left").set_value("ot")
    opened.run()
    assert any("with one seed a difference cannot be told from chance" in body for body in opened.html)


def test_classes_are_compared_over_common_seeds(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    for seed in (0, 1):
        sweep.student("kd", 70.0, seed)
        sweep.student("student", 70.0 + seed, seed)
    record = sweep.record()
    right = {"kd": [(9, 2), (7, 4)], "student": [(8, 6), (7, 6)]}
    files = {}
    for row in record.trials:
        first, second = right[row.label.method][row.label.seed]
        cells = ((0, 0, first), (0, 1, 10 - first), (1, 0, 8 - second), (1, 1, second))
        files[row.run_id, "confusion.json"] = Confusion(classes=2, cells=cells).model_dump_json()
        files[row.run_id, "per-class.csv"] = "class,top-1 %\n<cat>,1\ndog,2\n"
    opened = page(record, files)
    app = opened.open("Compare two")
    app.selectbox(key="compare.left").set_value("kd")
    app.selectbox(key="compare.right").set_value("student")
    app.toggle(key="compare.classes").set_value(True)
    opened.run()
    rows = tables(opened)[-1][1:]
    # dog: kd 25 % and 50 %, the student 75 % twice; cat: 90 % and 70 % against 80 % and 70 %
    assert rows == [
        ["dog", "37.50 ± 17.68", "75.00 ± 0.00", "−37.50 ± 17.68"],
        ["<cat>", "80.00 ± 14.14", "75.00 ± 7.07", "+5.00 ± 7.07"],
    ]


def test_the_ablation_has_the_reports_table_and_a_curve(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    for value, top1 in ((1.0, 75.0), (0.1, 73.0)):
        for seed in range(2):
            sweep.student("ot", top1 + seed, seed, axes={"transport.weight": value})
    opened = page(sweep.record())
    app = opened.open("Ablations")
    assert app.selectbox(key="ablation.axis").value == "Ablation: transport.weight"
    assert [row[:2] for row in tables(opened)[0][2:]] == [["1", "75.50 ± 0.71"], ["0.1", "73.50 ± 0.71"]]
    assert len(app.get("vega_lite_chart")) == 1


def test_no_axis_is_said(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.open("Ablations")
    assert any("no axis of several values" in body for body in opened.html)


def test_a_trial_is_opened_from_the_failures(page: Callable[..., Any]) -> None:
    record = full_sweep().record()
    diverged = next(row.label for row in record.trials if row.status == "diverged")
    opened = page(record)
    app = opened.open("Failures")
    assert set(app.dataframe[0].value["status"]) == {"diverged", "missing"}
    app.multiselect(key="failures.status").set_value(["diverged"])
    opened.run()
    assert list(app.dataframe[0].value["key"]) == [diverged.key]
    next(button for button in app.button if button.label == "Open it").click()
    opened.run()
    assert app.radio(key="view").value == "One trial"
    assert app.selectbox(key="trial.key").value == diverged.key
    assert any("loss is NaN in epoch 3" in body for body in opened.html)


def test_a_trial_shows_its_matrices_and_settings(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    sweep.student("ot", 71.25)
    picture = Picture(about=HOSTILE, matrix=((0.5, 0.0, 0.1), (0.2, 0.1, 0.1)))
    files = {
        ("run-00", "snapshots.json"): Pictures(pictures={"a": picture, HOSTILE: picture}).model_dump_json(),
        ("run-00", "confusion.json"): Confusion(classes=3, cells=((0, 0, 3), (1, 2, 4), (1, 1, 1))).model_dump_json(),
        ("run-00", "trial.yaml"): "seed: 0\n",
    }
    opened = page(sweep.record(), files)
    app = opened.open("One trial")
    assert len(app.image) == 2
    assert app.selectbox(key="trial.picture").options == ["a", HOSTILE]
    classes = app.dataframe[-1].value
    assert list(classes["class"]) == ["1", "0", "2"]
    assert list(classes["top-1 %"])[:2] == [20.0, 100.0]
    assert math.isnan(classes["top-1 %"].iloc[2]), "a class without test images has no accuracy"
    assert "seed: 0" in [one.value for one in app.code]
    assert "71.25" in tables(opened)[0][1]


def test_a_plan_is_shown_by_epoch(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    sweep.student("ot", 71.25)
    early, late = (Picture(about=f"{words} plan", matrix=((0.5, 0.0), (0.0, 0.5))) for words in ("an early", "a late"))
    kept = Pictures(pictures={"a": late}, earlier=(Moment(epoch=1, pictures={"a": early}),))
    opened = page(sweep.record(), {("run-00", "snapshots.json"): kept.model_dump_json()})
    app = opened.open("One trial")
    box = app.selectbox(key="trial.epoch")
    assert (box.options, box.value) == (["1", "last"], "last")
    assert any("a late plan" in body for body in opened.html)
    box.set_value("1")
    opened.run()
    assert any("an early plan" in body for body in opened.html)


def test_a_file_that_the_store_does_not_give_is_asked_for_again(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    sweep.student("ot", 71.25)
    opened = page(sweep.record(), {("run-00", "trial.yaml"): "seed: 0\n"})
    opened.file_error = TrackingError(f"the store {HOSTILE} cannot be reached. Start it.")
    app = opened.open("One trial")
    assert any("Start it." in body and "otkd-notice" in body for body in opened.html)
    assert "71.25" in tables(opened)[0][1], "what was read before is shown"
    opened.file_error = None
    opened.run()
    assert "seed: 0" in [one.value for one in app.code]
    assert not any("Start it." in body for body in opened.html)


def test_a_file_that_was_missing_is_shown_once_the_run_has_it(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    sweep.student("ot", 71.25)
    opened = page(sweep.record())
    (row,) = opened.record.trials
    lacking, whole = (row._replace(tags={**row.tags, names.TAG_FILES: tag}) for tag in ("missing", ""))
    opened.record = opened.record._replace(trials=(lacking,))
    app = opened.open("One trial")
    assert not app.code
    opened.files["run-00", "trial.yaml"] = "seed: 0\n"
    opened.record, opened.stamp = opened.record._replace(trials=(whole,)), "2"
    opened.run()
    assert "seed: 0" in [one.value for one in app.code]


def test_a_trial_shows_every_figure_that_it_has(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    ece, kl, val = names.test("last", names.TEST_ECE), names.test("best", names.TEST_KL), names.VAL_LOSS
    sweep.student("kd", 71.25, **{ece: 6.125, kl: 0.61234, val: 1.5}, status="failed", reason="a `disk` is full")
    opened = page(sweep.record())
    opened.open("One trial")
    assert tables(opened)[0] == [
        ["figure", "seed 0"],
        ["test top-1 %, last epoch", "71.25"],
        [METRICS[ece].head, "6.12"],
        [METRICS[kl].head, "0.6123"],
        [METRICS[val].head, "1.5000"],
        ["seconds per epoch", "10.00"],
        ["parameters", "700,000"],
    ]
    assert any("has not finished: figures of the last epoch" in body for body in opened.html)
    assert any("a `disk` is full" in body for body in opened.html), "a reason is no text of ours"


def test_a_box_names_a_trial_of_the_method_that_is_chosen(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    app = opened.open("One trial")
    app.selectbox(key="trial.method").set_value("kd")
    opened.run()
    box = app.selectbox(key="trial.key")
    assert box.value in {row.label.key for row in opened.record.trials if row.label.method == "kd"}
    assert box.proto.set_value, "else a browser goes on showing the trial before"
    assert box.proto.raw_value == box.options[0]


def test_candidates_of_a_search_show_no_test_figure(page: Callable[..., Any]) -> None:
    sweep = Sweep(val="0.2")
    for value, val in ((0.1, 61.0), (0.9, 64.0)):
        held = {names.BEST_VAL_TOP1: val}
        sweep.student("kd", 12.34, 0, axes={"kd.weight": value}, stage="search", **held)
    sweep.student("kd", 66.66, 7, stage="final", axes={"kd.weight": 0.9})
    record = sweep.record()
    counts = Confusion(classes=2, cells=((0, 0, 3), (1, 1, 4))).model_dump_json()
    opened = page(record, {(row.run_id, "confusion.json"): counts for row in record.trials})
    app = opened.open("One trial")
    app.selectbox(key="trial.key").set_value(record.trials[0].label.key)
    opened.run()
    assert "61.00" in tables(opened)[0][1]
    assert not [body for body in opened.html if "12.34" in body]
    assert not app.image
    app.radio(key="view").set_value("Leaderboard")
    opened.run()
    assert "66.66" in tables(opened)[0][-1]
    app.radio(key="board.stage").set_value("candidates of the search")
    opened.run()
    assert [row[1] for row in tables(opened)[0][1:]] == ["64.00", "61.00"]


def test_any_figure_ranks_the_leaderboard(page: Callable[..., Any]) -> None:
    sweep, ece = Sweep(), names.test("last", names.TEST_ECE)
    for seed in range(2):
        for method, top1, error in (("student", 70.0, 4.0), ("kd", 72.0, 9.0), ("ot", 71.0, 2.0)):
            sweep.student(method, top1, seed, **{ece: error + seed})
    opened = page(sweep.record())
    app = opened.open("Leaderboard")
    assert app.selectbox(key="board.figure").options == [choice.DEFAULT.head, METRICS[ece].head]
    app.selectbox(key="board.figure").set_value(ece)
    app.selectbox(key="board.order").set_value(FIRST)
    opened.run()
    (table,) = accuracy.table(choice.choose(frame.trials(opened.record, opened.epochs), ece, None), opened.record.info)
    _, heads, *rows = tables(opened)[0]
    assert heads == ["method", *(word for _, word in table.frame.columns)]
    assert [row[:2] for row in rows[1:]] == [["ot", "2.50 ± 0.71"], ["student", "4.50 ± 0.71"], ["kd", "9.50 ± 0.71"]]
    assert any("lowest mean" in body for body in opened.html)


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_how_far_the_sweep_is(page: Callable[..., Any], view: str) -> None:
    sweep = Sweep()
    sweep.student("kd", 71.0)
    opened = page(sweep.record())
    opened.open(view)
    assert [body for body in opened.html if ">Over: 1 of 1 trials finished.<" in body]


def test_a_sweep_is_over_when_nothing_runs_and_nothing_is_to_come(page: Callable[..., Any]) -> None:
    sweep = Sweep()
    sweep.student("kd", 71.0)
    sweep.student("kd", seed=1, status="diverged")
    assert overview.standing(frame.trials(sweep.record())) == "Over: 1 of 2 trials finished, 1 diverged."
    sweep.missing("kd", 2)
    resting = "Not over, and nothing is in training: 1 of 3 trials finished, 1 to come, 1 diverged."
    assert overview.standing(frame.trials(sweep.record())).startswith(resting)
    sweep.student("kd", seed=3, status="running")
    running = "Running: 1 of 4 trials finished, 1 in training, 1 to come, 1 diverged."
    assert overview.standing(frame.trials(sweep.record())) == running


def test_a_search_may_try_more(page: Callable[..., Any]) -> None:
    sweep = Sweep(val="0.2")
    sweep.student("ot", 70.0, stage="search", axes={"transport.weight": 0.1}, **{names.BEST_VAL_TOP1: 61.0})
    assert overview.standing(frame.trials(sweep.record())).startswith("Over unless the search tries more: 1 of 1")


def test_cost_joins_what_the_report_has(page: Callable[..., Any]) -> None:
    from dashboards.source import Sweep as Read
    from dashboards.views.cost import against
    from otkd.core.layout import Layout

    record = full_sweep().record()
    opened = page(record)
    opened.open("Cost")
    trials = frame.trials(record, opened.epochs)
    data = against(Read(Layout("nowhere"), record, opened.epochs), FIRST).set_index("name")
    assert list(data.index) == ["student", "kd", "ot", "ot+kd"]
    for name, row in data.iterrows():
        assert row["x_mean"] == cost.cost(trials, name, FIRST).summary.mean
    # the floor: 10.0, 10.3 and 10.6 s once the first epoch is left out
    assert data.loc["student", "x_mean"] == pytest.approx(10.3)
    assert data.loc["student", "y_mean"] == pytest.approx(73 + 2.4 * np.mean(OFFSETS))


def test_a_curve_is_mean_and_spread_of_what_is_finite() -> None:
    rows = [("a", 1, 2.0), ("a", 1, 4.0), ("a", 2, 5.0), ("a", 2, math.nan), ("b", 1, math.inf), ("b", 1, 7.0)]
    found = charts.averaged(pd.DataFrame(rows, columns=["variant", "epoch", "value"]), "variant")
    root = math.sqrt(2)
    expected = [("a", 1, 3.0, root, 2, 3 - root, 3 + root), ("a", 2, 5.0, math.nan, 1, 5, 5)]
    expected += [("b", 1, 7.0, math.nan, 1, 7, 7)]
    wanted = pd.DataFrame(expected, columns=["name", "epoch", "mean", "std", "n", "low", "high"])
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)


def test_it_reads_again_only_when_something_is_new(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.open()
    opened.run()
    assert opened.reads == 1
    opened.stamp = "2"
    opened.run()
    assert opened.reads == 2
    next(button for button in opened.app.button if button.label == "Read again").click()
    opened.run()
    assert opened.reads == 3


def test_a_sweep_that_took_long_to_read_is_not_read_at_every_turn(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.seconds = 0.5
    opened.open()
    for opened.stamp in "23":
        opened.run()
    assert opened.reads == 1
    opened.app.session_state[READ]._rests = 0.0
    opened.run()
    assert opened.reads == 2


def test_a_sweep_that_the_address_asks_for_in_vain(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.app.query_params["sweep"] = "dem<o"
    opened.open()
    said = "The address asks for another: there is no sweep 'dem<o'; there is demo, other. Did you mean 'demo'?"
    for _ in range(2):
        assert escape(said) in "".join(opened.html)
        assert opened.app.selectbox(key="sweep").value == "demo"
        opened.run()
    opened.app.selectbox(key="sweep").set_value("other")
    opened.run()
    assert "asks for another" not in "".join(opened.html)


def test_a_sweep_that_the_address_asks_for_is_shown_once_it_is_there(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.app.query_params["sweep"] = "later"
    opened.open()
    opened.names, opened.stamp = ["demo", "later"], "2"
    opened.run()
    assert opened.app.selectbox(key="sweep").value == "later"
    assert "asks for another" not in "".join(opened.html)


def test_a_view_that_the_address_asks_for_in_vain(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.open("<b>Cots</b>")
    said = f"The address asks for another: there is no view '<b>Cots</b>'; there is {', '.join(VIEWS)}."
    for _ in range(2):
        assert escape(said) in "".join(opened.html)
        assert opened.app.radio(key="view").value == "Overview"
        opened.run()
    for view in ("Cost", "Overview"):
        opened.app.radio(key="view").set_value(view)
        opened.run()
        assert "asks for another" not in "".join(opened.html)


def test_a_store_that_goes_away_leaves_what_was_read(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.open("Leaderboard")
    opened.error, opened.stamp = TrackingError(f"the store {HOSTILE} cannot be reached. Start it."), "2"
    opened.run()
    assert any("Start it." in body and "otkd-notice" in body for body in opened.html)
    assert tables(opened)[0][3][0] == "student"


def test_nothing_recorded_says_how_to_begin(page: Callable[..., Any]) -> None:
    opened = page(full_sweep().record())
    opened.error = TrackingError("nothing is recorded yet. Run a sweep first (`otkd sweep FILE`), or name its --runs.")
    opened.open()
    assert any("Run a sweep first (<code>otkd sweep FILE</code>)" in body for body in opened.html)
    opened.error, opened.stamp = None, "2"
    opened.run()
    assert any('otkd-title">demo<' in body for body in opened.html), "it is shown as soon as there is one"


def test_a_large_sweep_begins_with_one_pair(page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGE", 7)  # it has two pairs and four methods
    opened = page(full_sweep().record())
    opened.open("Leaderboard")
    assert tables(opened)[0][0] == ["", FIRST]
    opened.app.radio(key="view").set_value("Overview")
    opened.run()
    assert not [body for body in opened.html if "Against kd" in body]
    next(one for one in opened.app.toggle if one.label.startswith("Test every method")).set_value(True)
    opened.run()
    assert [body for body in opened.html if "Against kd" in body]
