"""Plug-ins that ask for files of trials get them; links and provenance of the page."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_sweeps import Sweep

from otkd.core import names, plugins
from otkd.core.errors import TrackingError
from otkd.core.layout import Layout
from otkd.report import formats, frame, render
from otkd.report.files import NONE, by_label, call, texts
from otkd.report.tables import compression, cost
from otkd.track import reader
from otkd.track.bulk import Columns

COUNTS = "class,top-1 %,mistaken most for,times,images,right\n<i>a</i>,50.00,,0,50,{}\nb,50.00,,0,50,25\n"


def small() -> Sweep:
    """`ot` failed on its second seed."""
    sweep = Sweep()
    sweep.teacher("wrn_40_2")
    for seed in range(2):
        sweep.student("student", 70.0, seed, **{names.WALL_S: 1800.0})
    sweep.student("ot", 71.0, 0, **{names.WALL_S: 3600.0})
    sweep.student("ot", seed=1, status="failed", **{names.WALL_S: 900.0})
    return sweep


class Kept:
    def text(self, key, path):
        return COUNTS.format(int(key, 16) + 20) if path == "per-class.csv" else None


class Away:
    def text(self, key, path):
        raise TrackingError("the store does not answer")


def test_files_go_to_those_that_name_them():
    given = object()
    assert call(lambda frame, info: (frame, info), 1, 2, files=given) == (1, 2)
    assert call(lambda frame, info, files: files, 1, 2, files=given) is given
    assert call(lambda frame, info, *, files=None: files, 1, 2, files=given) is given
    assert call(lambda frame, **others: others, 1, files=given) == {}, "only a parameter of that name counts"
    assert NONE.text("key", "confusion.json") is None


def test_a_table_is_made_from_files():
    record = small().record()
    sections = {section.name: section for section in render.compose(record, None, files=Kept()).sections}
    (table,) = sections["per_class"].tables
    assert table.frame["class"].tolist() == ["<i>a</i>"]
    # keys count rows from 0: students 1 and 2, ot 3; only seed 0 is common: +2 of 50 images
    assert table.frame.iloc[0, 1] == "+4.00"
    assert "per_class" not in {section.name for section in render.compose(record, None).sections}


def test_a_store_that_does_not_answer_costs_the_plugin(tmp_path):
    made = render.build(small().record(), None, tmp_path, kept=Away())
    assert "table per_class: TrackingError: the store does not answer" in made.problems
    assert (tmp_path / "tables/accuracy.csv").exists()


def test_figures_and_captions_may_ask_too(monkeypatch):
    asked = []

    def figure(frame, epochs, info, files):
        asked.append(files.text("00", "per-class.csv"))
        return Figure()

    module = SimpleNamespace(TITLE="Mine", figure=figure, caption=lambda frame, info, files: str(files.text("0", "x")))
    monkeypatch.setattr(plugins, "names", lambda group: ["mine"] if group == "plots" else [])
    monkeypatch.setattr(plugins, "load", lambda group, name: module)
    made = render.compose(small().record(), None, files=Kept())
    assert made.problems == []
    assert made.sections[0].pictures[0].caption == "None"
    assert asked == [COUNTS.format(20)]


def test_write_report_brings_the_files(tmp_path, monkeypatch):
    record = small().record()
    monkeypatch.setattr(reader, "read_sweep", lambda layout, name=None: record)
    monkeypatch.setattr(reader, "curves", lambda layout, run_ids, metric: Columns(*np.empty((3, 0), int)))
    monkeypatch.setattr(reader, "files", lambda layout, record: Kept())
    made = render.write_report(Layout(tmp_path), "demo")
    assert (made.folder / "tables/per-class-to-student.csv").exists()
    assert "&lt;i&gt;a&lt;/i&gt;" in made.html.read_text()
    assert "<i>a" not in made.html.read_text() + (made.folder / "report.md").read_text()


HOSTILE = '"><script>alert(1)</script>|'


def test_runs_link_to_mlflows_pages(tmp_path):
    record = small().record()
    rows = (record.trials[0]._replace(run_id=HOSTILE), record.trials[1]._replace(run_id=""), *record.trials[2:])
    record = record._replace(trials=rows, experiment="7", ui="https://host/mlflow")
    made = render.build(record, None, tmp_path)
    page, markdown = made.html.read_text(), (tmp_path / "report.md").read_text()
    address = "https://host/mlflow/#/experiments/7/runs/{}?workflowType=machine_learning"
    assert f'<a href="{address.format("run-02")}">run-02</a>' in page
    assert f"[run-02](<{address.format('run-02')}>)" in markdown
    assert page.count('<a href="https://host/mlflow/#/experiments/7/runs/') == len(rows) - 1
    assert page.count("<script") == 1, "the page's own"
    assert f"(<{address.format('%22%3E%3Cscript%3Ealert%281%29%3C/script%3E%7C')}>)" in markdown
    assert "https://host/mlflow (those of a database" in page
    trials = markdown.split("## Every trial")[1].split("##")[0]
    lines = [re.sub(r"\\\|", "", line) for line in trials.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_no_links_without_an_address(tmp_path):
    made = render.build(small().record(), None, tmp_path)
    assert "/#/experiments" not in made.html.read_text() + (tmp_path / "report.md").read_text()
    assert "pages" not in render._provenance(frame.trials(small().record()), small().record())


def test_provenance_has_the_time_and_the_images():
    record = small().record()
    rows = [row._replace(data=(("test", "d1"), ("training", "d2"))) for row in record.trials]
    rows[1] = rows[1]._replace(data=(("test", "d1"), ("training", "d3")))
    record = record._replace(trials=tuple(rows))
    trials = frame.trials(record)
    told = render._provenance(trials, record)
    assert told["training time"] == "2.2 h in 4 trials, as if each had trained alone"  # 2 · 0.5 + 1 + 0.25
    assert told["test data"] == "d1"
    assert told["training data"] == "d2 (4 trials), d3 (1 trial)"
    assert told["commit"] == "abc1234"
    assert "training time" not in render._provenance(frame.trials(Sweep().record()), Sweep().record())


@pytest.mark.parametrize(("seconds", "said"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (90, "1.5 min"), (7200, "2.0 h")])
def test_a_time_has_the_largest_unit_that_it_fills(seconds, said):
    assert render._duration(seconds) == said


def test_cost_has_hours_of_the_trials_that_finished():
    record = small().record()
    (table,) = cost.table(frame.trials(record), record.info)
    hours = table.flat()["wrn_16_2 ← wrn_40_2, h / trial"]
    assert hours.to_dict() == {"student": "0.500", "ot": "1.000"}
    assert table.data["trial_h"].tolist() == [0.5, 1.0]
    assert "They are no GPU-hours" in table.caption
    assert "with that epoch, in which code is loaded and compiled (s / epoch leaves it out)" in table.caption
    bare = Sweep()
    bare.student("student", 70.0)
    (table,) = cost.table(frame.trials(bare.record()), bare.record().info)
    assert not [column for column in table.flat() if "h / trial" in column]
    assert "GPU-hours" not in table.caption


def test_cost_has_the_energy_of_the_trials_that_finished_and_have_it():
    sweep = small()
    for row, joules in zip(sweep.rows[1:], (7_200.0, None, 18_000.0, 900.0), strict=True):
        row.metrics.update({} if joules is None else {names.TRIAL_J: joules})
    (table,) = cost.table(frame.trials(sweep.record()), sweep.record().info)
    energy = table.flat()["wrn_16_2 ← wrn_40_2, Wh / trial"]
    assert energy.to_dict() == {"student": "2.00 (n = 1)", "ot": "5.00"}
    assert table.data["trial_wh"].tolist() == [2.0, 5.0]
    assert "of neither the rest of the machine nor other devices" in table.caption
    (bare,) = cost.table(frame.trials(small().record()), small().record().info)
    assert not [column for column in bare.flat() if "Wh" in column]
    assert "trial_wh" not in bare.data
    assert "Wh" not in bare.caption


def test_compression_has_the_throughput_of_both_networks():
    sweep = small()
    sweep.rows[0].metrics[names.IMAGES_PER_S] = 2000.0
    sweep.student("kd", 71.0, seconds=40.0)
    sweep.student("simkd", 70.0, terms=("simkd",), **{names.PARAMS: 1.1e6})
    (table,) = compression.table(frame.trials(sweep.record()), sweep.record().info)
    assert table.frame["training throughput"].to_dict() == {
        "wrn_40_2": "2000 images/s",
        "wrn_16_2": "5000 images/s (2.50×)",
        "wrn_16_2, simkd": "— (not on record)",
    }
    assert table.data[f"{names.IMAGES_PER_S} ratio"].tolist()[:2] == [1.0, 2.5]
    assert "the student's over the teacher's" in table.caption
    for row in sweep.rows:
        row.metrics.pop(names.IMAGES_PER_S, None)
    (table,) = compression.table(frame.trials(sweep.record()), sweep.record().info)
    assert "training throughput" not in table.frame
    assert "Throughput" not in table.caption


def test_a_cell_may_be_bold_and_lead_somewhere():
    record = small().record()
    (table,) = cost.table(frame.trials(record), record.info)
    linked = formats.markdown(type(table)(**{**vars(table), "links": {(0, 0): "https://host/#a"}, "bold": {(0, 0)}}))
    assert "**[10.0 ± 0.0](<https://host/#a>)**" in linked


def test_a_table_by_class_is_read_in_one_way():
    text = 'class,top-1 %,mistaken most for,times,images,right\n"a, b",50.00,,0,50,25\nnull,,,0,0,0\n'
    assert by_label(text) == [("a, b", 50, 25), ("null", 0, 0)]
    assert by_label("class,top-1 %\n<cat>,1\n") == [("<cat>", 0, 0)], "what is lacking is nought"
    assert by_label("class,images,right\ndog,many,-3\n") == [("dog", 0, 0)]
    assert by_label(None) == by_label("") == []


def test_files_of_many_trials_keep_their_order():
    keys = [f"{index:02x}" for index in range(40)]
    assert texts(Kept(), keys, "per-class.csv") == [Kept().text(key, "per-class.csv") for key in keys]
    with pytest.raises(TrackingError):
        texts(Away(), keys, "per-class.csv")
