"""Reports of a search: what is compared, what was tried, and that no test figure of a candidate is seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from report_sweeps import PAIRS, Sweep

from otkd.core import names
from otkd.core.layout import Layout
from otkd.report import frame, render, selection
from otkd.report.tables import ablation, accuracy, search
from otkd.sweep import tried

PAIR = " ← ".join(PAIRS[0])
LAST = f"{PAIR}, test top-1 %, last epoch, n = 2"
VALS = {1.0: (60.0, 62.0), 10.0: (63.0, 64.0), 100.0: (63.5, 63.5), 50.0: (70.0, 71.0)}
"""Weight of `ot` → best val top-1 with seeds 0 and 1; the last one is stopped early, two have equal means."""


def candidate(sweep: Sweep, method: str, seed: int, val: float, pruned: bool = False, **axes: float) -> None:
    """The worse it is on validation images, the better on test images."""
    metrics = {names.VAL_TOP1: val} if pruned else {names.BEST_VAL_TOP1: val, names.test("best", "top1"): 99 - val}
    status = "pruned" if pruned else "finished"
    test = float("nan") if pruned else 99 - val
    sweep.student(method, test, seed, status=status, axes=axes, stage="search", **metrics)


def searched(final: bool = False) -> Sweep:
    """Two studies, two seeds a configuration."""
    sweep = Sweep(val="5000.0")
    sweep.teacher(PAIRS[0][1], 75.0, stage="search")
    for seed in (0, 1):
        candidate(sweep, "student", seed, 58.0 + seed)
    for weight, vals in VALS.items():
        for seed, val in enumerate(vals):
            candidate(sweep, "ot", seed, val, pruned=weight == 50, **{"transport.weight": weight})
    if final:
        sweep.teacher(PAIRS[0][1], 76.0, stage="final")
        for seed in (2, 3):
            sweep.student("student", 70.0 + seed, seed, stage="final")
            sweep.student("ot", 72.0 + seed, seed, stage="final")
    return sweep


def trials(sweep: Sweep):
    record = sweep.record()
    return frame.trials(record), record.info


def history(sweep: Sweep):
    """Those that were stopped have two epochs, of which the first was better; the others have six."""
    rows = [
        (row.label.key, epoch, (row.metrics[names.VAL_TOP1] + 2 - epoch if row.status == "pruned" else 50.0 + epoch))
        for row in sweep.rows
        if row.label.stage == "search" and row.label.teacher
        for epoch in range(1, 3 if row.status == "pruned" else 7)
    ]
    curves = {key: [(e, value) for k, e, value in rows if k == key] for key, _, _ in rows}
    return frame.epochs(sweep.record(), lambda metric: curves if metric == names.VAL_TOP1 else {})


def test_the_winner_is_the_first_of_the_best_on_validation_that_were_trained_whole():
    found = selection.configurations(trials(searched())[0])
    assert found["configuration"].tolist() == ["", "weight=1", "weight=10", "weight=100", "weight=50"]
    assert found["val"].tolist() == [58.5, 61.0, 63.5, 63.5, 70.5]
    assert found.loc[found["won"], "configuration"].tolist() == ["", "weight=10"]


def test_without_final_trials_each_study_is_its_winner_and_says_so():
    made, info = trials(searched())
    [last, best] = accuracy.table(made, info)
    assert last.flat()[LAST].to_dict() == {
        "teacher": "75.00 (n = 1, no spread)",
        "student": "40.50 ± 0.71",
        "ot": "35.50 ± 0.71",
    }
    for table in (last, best):
        assert "Settings were chosen by mean val top-1; configurations tried a pair: student 1, ot 4." in table.caption
        assert "with the seeds that it was chosen by" in table.caption


def test_final_trials_alone_are_compared():
    made, info = trials(searched(final=True))
    [last] = accuracy.table(made, info)
    assert last.flat()[LAST].to_dict() == {
        "teacher": "76.00 (n = 1, no spread)",
        "student": "72.50 ± 0.71",
        "ot": "74.50 ± 0.71",
    }
    assert "trained again on all training images with fresh seeds, and tested once" in last.caption
    assert ablation.table(made, info) == []


@pytest.mark.parametrize("final", [False, True])
def test_test_figures_of_candidates_are_nowhere(final, tmp_path):
    sweep = searched(final)
    report = render.build(sweep.record(), history(sweep), tmp_path)
    assert report.problems == ()
    shown = {"35.5", "35.0", "36.0", "40.0", "41.0"} if not final else set()
    hidden = {f"{99 - val:.1f}" for vals in VALS.values() for val in vals} | {"40.0", "41.0"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = (tmp_path / "trials.csv").read_text(encoding="utf-8")
    for figure in hidden - shown:
        assert f" {figure}0 " not in text
        assert f",{figure}," not in rows
    assert "The search has tried 5 configurations in 2 studies, 4 of them to the end of training." in text
    assert ("| final |" in text) is final


def test_while_winners_are_still_to_be_trained_again_no_test_figure_is_seen(tmp_path):
    record, curves = searched().record(), history(searched())
    record = record._replace(info=record.info.model_copy(update={"finals": True}))
    report = render.build(record, curves, tmp_path)
    assert report.problems == ()
    seen = frame.trials(record, curves)
    assert set(seen["role"]) == {"search"}
    assert seen[[name for name in seen if name.startswith("test/")]].isna().all(axis=None)
    assert "## Search" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Test accuracy" not in (tmp_path / "report.md").read_text(encoding="utf-8").split("## Search")[0]


def test_the_table_lists_every_configuration_best_first():
    sweep = searched()
    record = sweep.record()
    student, ot = search.table(frame.trials(record, history(sweep)), record.info)
    assert student.frame.index.tolist() == ["as in the file"]
    assert ot.frame.reset_index().to_numpy().tolist() == [
        ["weight=50", "71.50 ± 0.71", "2", "pruned"],
        ["weight=10", "63.50 ± 0.71", "6", "finished"],
        ["weight=100", "63.50 ± 0.00", "6", "finished"],
        ["weight=1", "61.00 ± 1.41", "6", "finished"],
    ]
    assert ot.frame.columns[0] == "val top-1 %, best epoch, n = 2"
    assert ot.bold == {(1, 0)}
    assert "not shown" in ot.caption
    assert "of which 5000 held out for validation." in ot.caption
    assert not any("test" in column for column in ot.data)


def test_a_configuration_that_lost_a_seed_does_not_win():
    sweep = searched()
    sweep.student("ot", 50.0, 0, axes={"transport.weight": 7.0}, stage="search", **{names.BEST_VAL_TOP1: 90.0})
    sweep.student("ot", seed=1, axes={"transport.weight": 7.0}, stage="search", status="diverged")
    record = sweep.record()
    _, ot = search.table(frame.trials(record), record.info)
    assert ot.frame.iloc[0].tolist() == ["90.00 (n = 1, no spread)", "—", "finished ×1, diverged ×1"]
    assert ot.bold == {(2, 0)}


@pytest.mark.parametrize("open_", [True, False])
def test_the_best_of_what_was_stopped_wins_once_a_study_is_over_and_nothing_was_trained_whole(open_):
    sweep = Sweep(val="5000.0")
    sweep.teacher(PAIRS[0][1], stage="search")
    for weight, val in ((1.0, 60.0), (2.0, 61.0)):
        candidate(sweep, "ot", 0, val, pruned=True, **{"transport.weight": weight})
    if open_:
        sweep.student("ot", status="running", axes={"transport.weight": 3.0}, stage="search")
    made, info = trials(sweep)
    [table] = search.table(made, info)
    assert table.bold == (frozenset() if open_ else {(0, 0)})
    assert table.frame.index[0] == "weight=2"
    assert [list(made.frame.iloc[:, 0]) for made in accuracy.table(made, info)] == (
        [] if open_ else [["75.61 (n = 1, no spread)", "— (pruned ×1)"]]
    )


def test_what_was_stopped_is_judged_by_its_best_epoch_wherever_it_is_told(tmp_path, monkeypatch):
    sweep = Sweep(val="5000.0")
    sweep.teacher(PAIRS[0][1], stage="search")
    peaks = {60.0: 70.0, 65.0: 66.0}
    for weight, last in enumerate(peaks):
        candidate(sweep, "ot", 0, last, pruned=True, **{"transport.weight": float(weight)})
    record = sweep.record()
    ends = {row.label.key: row.metrics[names.VAL_TOP1] for row in record.trials if row.label.teacher}
    curves = {key: [(1, peaks[end]), (2, end)] for key, end in ends.items()}
    epochs = frame.epochs(record, lambda metric: curves if metric == names.VAL_TOP1 else {})
    seen: list[str] = []

    def table(made, info):
        seen.extend(made.loc[made["role"] == "student", "configuration"])
        return []

    monkeypatch.setattr(accuracy, "table", table)
    render.build(record, epochs, tmp_path)
    assert seen == ["weight=0"], "the note and the terminal show the report's table"


TIES = {1.0: (10.1, 10.2, 10.3), 2.0: (10.3, 10.2, 10.1), 3.0: (10.2, 10.2, 10.2)}
"""Weight → best val top-1 of three seeds, whose sums as floats are not all the same."""


def test_equal_means_are_equal_however_floats_round():
    sweep = Sweep(val="5000.0")
    for weight, of_seeds in TIES.items():
        for seed, val in enumerate(of_seeds):
            candidate(sweep, "ot", seed, val, **{"transport.weight": weight})
    found = selection.configurations(trials(sweep)[0])
    assert found["val"].tolist() == [10.2, 10.2, 10.2]
    assert found["won"].tolist() == [True, False, False]


def test_the_sweep_finds_the_same_winner(tmp_path, monkeypatch):
    def result(val, layout):
        return SimpleNamespace(status="finished", metrics={names.BEST_VAL_TOP1: val})

    monkeypatch.setattr(tried, "result_of", result)
    tries = [
        SimpleNamespace(study="ot", planned=[SimpleNamespace(trial=val) for val in vals]) for vals in TIES.values()
    ]
    found = tried.winners(map(tried.Standing, tries), Layout(tmp_path))
    assert found["ot"] == (tries[0], 10.2, True)


def test_a_search_with_no_candidate_yet_has_a_report(tmp_path):
    sweep = Sweep(val="5000.0")
    sweep.teacher(PAIRS[0][1], stage="search")
    report = render.build(sweep.record(), None, tmp_path)
    assert report.problems == ()
    assert "holds no student yet" in report.markdown


def test_learning_curves_are_of_what_is_compared():
    sweep = searched(final=True)
    record = sweep.record()
    curves = {row.label.key: [(1, 50.0)] for row in record.trials}
    held_out = {row.label.key: [(1, 60.0)] for row in record.trials if row.label.stage == "search"}
    epochs = frame.epochs(record, lambda metric: held_out if metric == names.VAL_TOP1 else curves)
    stages = {row.label.key: row.label.stage for row in record.trials}
    by_metric = {metric: set(rows["key"].map(stages)) for metric, rows in epochs.groupby("metric")}
    assert by_metric[names.VAL_TOP1] == {"search"}
    assert by_metric[names.TRAIN_TOP1] == {"final"}


def test_a_sweep_that_searches_nothing_has_no_such_table(record):
    made = frame.trials(record)
    assert search.table(made, record.info) == []
    assert selection.rule(made) == ""
