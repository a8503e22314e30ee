"""The written report: whole, self-contained, escaped, and made whatever became of the trials."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from report_sweeps import PAIRS, Sweep, full_sweep, histories

from otkd.core import names, plugins
from otkd.core.layout import Layout
from otkd.report import formats, frame, references, render, style, summary
from otkd.track import reader

NASTY = "<script>alert(1)</script> & 50% a_b $x$ |"


def one_seed() -> Sweep:
    sweep = Sweep()
    sweep.student("student", 70.0)
    sweep.student("ot", 71.0)
    return sweep


def all_failed() -> Sweep:
    sweep = Sweep()
    for seed in range(2):
        sweep.student("ot", seed=seed, status="failed", reason="out of memory")
    return sweep


def running() -> Sweep:
    sweep = Sweep()
    sweep.teacher("wrn_40_2")
    sweep.student("student", 70.0)
    sweep.student("kd", status="running")
    return sweep


def unknown_data() -> Sweep:
    sweep = Sweep(dataset="mine", question="")
    sweep.student("odd", 99.0, terms=("ce", "odd"), pair=("a", "b"))
    return sweep


SWEEPS = {
    "full": full_sweep,
    "val": lambda: full_sweep(val=True),
    "one_seed": one_seed,
    "all_failed": all_failed,
    "running": running,
    "unknown": unknown_data,
    "empty": Sweep,
}


def make(sweep: Sweep, folder) -> render.Report:
    record = sweep.record()
    return render.build(record, frame.epochs(record, histories(record)), folder)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> render.Report:
    return make(full_sweep(), tmp_path_factory.mktemp("report"))


@pytest.mark.parametrize("group", ["tables", "plots"])
@pytest.mark.parametrize("name", SWEEPS)
def test_every_plugin_takes_every_sweep(group, name):
    record = SWEEPS[name]().record()
    epochs = frame.epochs(record, histories(record))
    trials = frame.trials(record, epochs)
    for plugin in plugins.names(group):
        module = plugins.load(group, plugin)
        assert isinstance(module.TITLE, str)
        if group == "plots":
            module.figure(trials, epochs, record.info)
            continue
        for table in module.table(trials, record.info):
            assert table.caption
            assert table.data.shape[0]
            assert all(row < table.frame.shape[0] and column < table.frame.shape[1] for row, column in table.bold)


def test_the_plugins_are_those_in_the_folders():
    assert plugins.names("tables") == ["ablation", "accuracy", "compression", "cost", "published"]
    assert plugins.names("plots") == ["accuracy", "cost", "curves"]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_report_is_made_whatever_became_of_the_trials(name, tmp_path):
    made = make(SWEEPS[name](), tmp_path / "deep" / "report")
    assert made.problems == ()
    assert all(path.stat().st_size for path in made.paths)
    assert not list(made.folder.rglob("*.tmp"))
    words = {
        "empty": "no student yet",
        "all_failed": "0 of 2 student trials finished (2 failed)",
        "running": "1 of 2 student trials finished (1 running). The figures are preliminary.",
        "one_seed": "with one seed a difference cannot be told from chance",
    }
    assert words.get(name, "") in made.html.read_text()
    assert words.get(name, "") in (made.folder / "report.md").read_text().replace("\\", "")


def test_everything_asked_for_is_written(report):
    written = {path.relative_to(report.folder).as_posix() for path in report.paths}
    figures = {f"figures/{name}.png" for name in ("accuracy", "curves", "cost")}
    tables = {
        f"tables/{name}.{kind}" for name in ("accuracy", "cost", "compression", "published") for kind in ("csv", "tex")
    }
    assert figures | tables | {"report.html", "report.md", "trials.csv"} == written
    assert (report.folder / "figures/cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_no_other_file(report):
    text = report.html.read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]{0,30})', text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in text
    for said in (
        "Does transport beat KD?",
        "abc1234",
        "240 epochs",
        "as the literature does",
        "diverged ×1, missing ×1",
    ):
        assert said in text


def test_csv_on_disk_equals_numpy(report):
    found = pd.read_csv(report.folder / "tables/accuracy.csv").set_index(["pair", "method"])
    trials = pd.read_csv(report.folder / "trials.csv")
    for (pair, method), rows in trials[trials["role"] == "student"].groupby(["pair", "variant"]):
        values = rows.loc[rows["status"] == "finished", names.test("last", "top1")].to_numpy()
        row = found.loc[(pair, method)]
        assert row["n"] == len(values)
        np.testing.assert_allclose(row["mean"], values.mean(), rtol=1e-12)
        np.testing.assert_allclose(row["std"], values.std(ddof=1) if len(values) > 1 else np.nan, rtol=1e-9)


def nasty() -> Sweep:
    sweep = Sweep(question=NASTY)
    sweep.student("student", 70.0, pair=(NASTY, "t_b"))
    sweep.student(NASTY, 71.0, pair=(NASTY, "t_b"), terms=("ce", "transport"), axes={"transport.weight": NASTY})
    sweep.student(NASTY, status="failed", reason=NASTY, seed=1, pair=(NASTY, "t_b"), terms=("ce", "transport"))
    return sweep


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)


def test_a_users_words_stay_words(tmp_path):
    made = make(nasty(), tmp_path)
    assert made.problems == ()
    tags = Tags()
    tags.feed(made.html.read_text())
    assert "script" not in tags.found
    assert "&lt;script&gt;alert(1)" in made.html.read_text()
    markdown = (made.folder / "report.md").read_text()
    assert "<script" not in markdown + made.markdown
    rows = [re.sub(r"\\\|", "", line) for line in made.markdown.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1, "a bar in a name opens no column"


def test_latex_escapes_and_balances(tmp_path):
    made = make(nasty(), tmp_path)
    text = (made.folder / "tables/accuracy.tex").read_text()
    assert r"50\% a\_b \$x\$ \textbar{}" in text
    assert r"$\leftarrow$" in text
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    for line in body.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert formats.tex("←×±Δε−≤_%&#\\{") == (
        r"$\leftarrow$$\times$$\pm$$\Delta$$\varepsilon$$-$$\leq$\_\%\&\#\textbackslash{}\{"
    )


def test_every_latex_letter_is_ascii(report):
    for path in report.folder.glob("tables/*.tex"):
        assert path.read_text().isascii(), path


def test_an_earlier_reports_tables_do_not_stay_behind(tmp_path):
    make(one_seed(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    make(Sweep(), tmp_path)
    assert not list(tmp_path.glob("tables/*"))
    assert (tmp_path / "notes.txt").exists()


def test_a_broken_plugin_costs_its_own_table_only(tmp_path, monkeypatch):
    def broken(trials, info):
        raise ValueError("no such column")

    monkeypatch.setattr(plugins.load("tables", "cost"), "table", broken)
    made = make(one_seed(), tmp_path)
    assert made.problems == ("table cost: ValueError: no such column",)
    assert "table cost: ValueError: no such column" in made.html.read_text()
    assert (tmp_path / "tables/accuracy.csv").exists()


def test_console_and_headline_are_the_accuracy_table(record):
    shown = render.console(record)
    assert list(shown.index) == ["teacher", "student", "kd", "ot", "ot+kd"]
    assert "wrn_16_2 ← wrn_40_2, Δ to kd, paired" in shown
    text = render.headline(record)
    assert "| teacher | 75.61" in text
    assert "22 of 24 student trials finished" in text
    assert render.console(Sweep().record()).empty


def test_sentences_claim_no_more_than_the_numbers(record):
    told = summary.sentences(frame.trials(record))
    assert "ot+kd has the highest mean" in told[1]
    assert "Not ranked: ot, 74.80 % (n = 1); diverged ×1, missing ×1." in told[1]
    sweep = Sweep()
    for seed, (one, two) in enumerate([(70.0, 70.4), (70.5, 70.2), (70.1, 70.3)]):
        sweep.student("student", one, seed)
        sweep.student("kd", two, seed)
    assert "within noise" in summary.sentences(frame.trials(sweep.record()))[1]


def test_a_method_has_one_colour_and_the_baseline_is_grey(record):
    looks = style.looks(frame.trials(record))
    assert looks["student"].colour == style.FLOOR
    assert len({look.colour for look in looks.values()}) == 4


def test_figures_leave_no_global_state(record):
    import matplotlib

    before = dict(matplotlib.rcParams)
    epochs = frame.epochs(record, histories(record))
    drawing = plugins.load("plots", "accuracy").figure(frame.trials(record, epochs), epochs, record.info)
    drawing.savefig(io.BytesIO(), format="png")
    assert dict(matplotlib.rcParams) == before


def test_write_report_reads_the_sweep_and_writes_below_runs(tmp_path, monkeypatch):
    record = one_seed().record()
    monkeypatch.setattr(reader, "read_sweep", lambda layout, name=None: record)
    monkeypatch.setattr(reader, "histories", lambda layout, record, metric: {})
    made = render.write_report(Layout(tmp_path), "demo")
    assert made.html == tmp_path / "reports/demo/report.html"
    assert made.html.exists()


def test_users_reference_rows_reach_the_page(tmp_path):
    extra = tmp_path / "mine.csv"
    teacher, student = PAIRS[0][1], PAIRS[0][0]
    extra.write_text(f"{','.join(references.COLUMNS)}\ncifar100,{teacher},{student},MyOT,75.5,last epoch,my paper\n")
    made = render.build(one_seed().record(), None, tmp_path / "out", references=extra)
    assert "MyOT" in made.html.read_text()
