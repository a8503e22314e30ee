"""A report that is there and would be the same again is shown, not made again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_sweeps import Sweep, full_sweep

from otkd.core.layout import Layout
from otkd.report import frame, references, render
from otkd.report.files import NONE
from otkd.report.options import WHOLE, checked
from otkd.report.tables import accuracy
from otkd.track import reader
from otkd.track.bulk import Columns


class Sweeps:
    """What the store has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record = full_sweep().record()
        self.made = 0
        compose = render.compose

        def counted(*given: Any) -> Any:
            self.made += 1
            return compose(*given)

        monkeypatch.setattr(render, "compose", counted)
        monkeypatch.setattr(reader, "read_sweep", lambda layout, name=None: self.record)
        monkeypatch.setattr(reader, "files", lambda layout, record: NONE)
        monkeypatch.setattr(reader, "curves", lambda layout, run_ids, metric: Columns(*np.empty((3, 0), int)))


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    """With no figures, which take the longest."""
    found = render.plugins.names
    monkeypatch.setattr(render.plugins, "names", lambda group: [] if group == "plots" else found(group))
    return Sweeps(monkeypatch)


def test_a_report_is_made_once(sweeps, tmp_path):
    first = render.write_report(Layout(tmp_path), "demo")
    page = first.html.read_bytes()
    again = render.write_report(Layout(tmp_path), "demo")
    assert sweeps.made == 1
    assert (first.new, again.new) == (True, False)
    assert first._replace(new=False, shown={}) == again._replace(shown={})
    assert list(first.shown) == list(again.shown)
    (table,) = accuracy.table(frame.trials(sweeps.record), sweeps.record.info)
    for pair, shown in first.shown.items():
        pd.testing.assert_frame_equal(shown, table.frame[pair], check_names=False, check_column_type=False)
        pd.testing.assert_frame_equal(shown, again.shown[pair])
    assert all(path.exists() for path in again.paths)
    assert again.html.read_bytes() == page


@pytest.mark.parametrize(
    "news",
    [
        {"status": "failed"},
        {"run_id": "another"},
        {"metrics": {"test/last/top1": 70.0}},
        {"ended": 5},
    ],
)
def test_any_news_of_a_trial_makes_it_again(sweeps, tmp_path, news):
    render.write_report(Layout(tmp_path), "demo")
    rows = list(sweeps.record.trials)
    rows[7] = rows[7]._replace(**news)
    sweeps.record = sweeps.record._replace(trials=tuple(rows))
    assert render.write_report(Layout(tmp_path), "demo").new
    assert not render.write_report(Layout(tmp_path), "demo").new


def test_another_question_makes_it_again(sweeps, tmp_path):
    render.write_report(Layout(tmp_path), "demo")
    info = sweeps.record.info.model_copy(update={"question": "Does it?"})
    sweeps.record = sweeps.record._replace(info=info)
    assert "Does it?" in render.write_report(Layout(tmp_path), "demo").html.read_text(encoding="utf-8")


def test_reference_rows_count(sweeps, tmp_path):
    layout, rows = Layout(tmp_path), tmp_path / "mine.csv"
    line = "cifar100,wrn_40_2,wrn_16_2,mine,{},last epoch,me"
    rows.write_text("\n".join([",".join(references.COLUMNS), line.format(75.1)]))
    assert render.write_report(layout, "demo").new
    assert render.write_report(layout, "demo", rows).new
    assert not render.write_report(layout, "demo", rows).new
    rows.write_text(rows.read_text().replace("75.1", "75.2"))
    assert render.write_report(layout, "demo", rows).new
    assert render.write_report(layout, "demo").new


def test_another_otkd_makes_it_again(sweeps, tmp_path, monkeypatch):
    render.write_report(Layout(tmp_path), "demo")
    monkeypatch.setattr(render, "__version__", "9.9.9")
    assert render.write_report(Layout(tmp_path), "demo").new


def test_another_plug_in_makes_it_again(sweeps, tmp_path, monkeypatch):
    render.write_report(Layout(tmp_path), "demo")
    mine = tmp_path / "mine.py"
    mine.write_text("TITLE = 'Mine'\n")
    monkeypatch.setattr(render.plugins, "sources", lambda group: {"mine": mine})
    assert render.write_report(Layout(tmp_path), "demo").new


@pytest.mark.parametrize("lost", ["tables/accuracy.csv", "report.md", render.SUMMARY])
def test_what_was_removed_comes_back(sweeps, tmp_path, lost):
    made = render.write_report(Layout(tmp_path), "demo")
    (made.folder / lost).unlink()
    assert render.write_report(Layout(tmp_path), "demo").new
    assert (made.folder / lost).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3, "problems": [], "made_with": ""}'])
def test_a_damaged_summary_makes_it_again(sweeps, tmp_path, text):
    made = render.write_report(Layout(tmp_path), "demo")
    (made.folder / render.SUMMARY).write_text(text)
    assert render.write_report(Layout(tmp_path), "demo").new


def test_a_report_that_lacks_something_is_made_again(sweeps, tmp_path, monkeypatch):
    def broken(frame: pd.DataFrame, info: Any) -> list[Any]:
        raise ValueError("no such column")

    cost = render.plugins.load("tables", "cost")
    monkeypatch.setattr(cost, "table", broken)
    assert render.write_report(Layout(tmp_path), "demo").problems
    assert render.write_report(Layout(tmp_path), "demo").problems
    assert sweeps.made == 2


def test_a_sweep_without_a_student_has_a_report(sweeps, tmp_path):
    sweeps.record = Sweep().record()
    assert render.write_report(Layout(tmp_path), "demo").shown == {}
    assert not render.write_report(Layout(tmp_path), "demo").new


def test_the_summary_is_for_programs(sweeps, tmp_path):
    made = render.write_report(Layout(tmp_path), "demo")
    told = json.loads((made.folder / render.SUMMARY).read_text(encoding="utf-8"))
    assert told["sweep"] == "demo"
    assert set(told["files"]) == {path.relative_to(made.folder).as_posix() for path in made.paths}
    table = told["accuracy"]["wrn_16_2 ← wrn_40_2"]
    assert table["index"] == ["teacher", "student", "kd", "ot", "ot+kd"]


def test_where_the_browser_lies_makes_no_difference(sweeps, tmp_path, monkeypatch):
    monkeypatch.setattr(render.pdf, "printed", lambda page, browser: b"%PDF-")
    one, other = (WHOLE._replace(browser=tmp_path / name) for name in ("chromium", "chrome"))
    layout = Layout(tmp_path)
    assert render.write_report(layout, "demo", options=one).new
    assert not render.write_report(layout, "demo", options=other).new


def test_a_pdf_that_is_wanted_is_made_and_one_that_is_there_stays(sweeps, tmp_path, monkeypatch):
    monkeypatch.setattr(render.pdf, "printed", lambda page, browser: b"%PDF-")
    layout, printing = Layout(tmp_path), WHOLE._replace(browser=tmp_path / "chromium")
    made = render.write_report(layout, "demo")
    assert not (made.folder / render.PDF).exists()
    assert render.write_report(layout, "demo", options=printing).new
    assert not render.write_report(layout, "demo").new
    assert (made.folder / render.PDF).exists()
    assert render.there(made.folder, sweeps.record).shown.keys() == made.shown.keys()


def test_a_report_of_other_options_is_not_what_a_sweep_writes(sweeps, tmp_path):
    made = render.write_report(Layout(tmp_path), "demo", options=checked(baseline="kd"))
    assert render.is_current(made.folder, sweeps.record)
    assert render.there(made.folder, sweeps.record) is None
