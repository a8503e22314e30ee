"""The written report: whole, self-contained, escaped, and made whatever became of the trials."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_sweeps import PAIRS, Sweep, full_sweep, histories
from rich.console import Console

from otkd import cli
from otkd.core import names, plugins
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.report import choice, formats, frame, references, render, stats, style, summary
from otkd.report.table import Table
from otkd.track import reader
from otkd.track.bulk import Columns

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


@pytest.mark.parametrize("group", ["tables", "plots"])
def test_the_plugins_are_those_in_the_folders(group):
    folder = Path(render.__file__).parent / group
    assert plugins.names(group) == sorted(path.stem for path in folder.glob("[!_]*.py"))


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


RANKED = ("wrn-16-2-wrn-40-2", "resnet8x4-resnet32x4")


def test_everything_asked_for_is_written(report):
    written = {path.relative_to(report.folder).as_posix() for path in report.paths}
    pictures = ("accuracy", "curves", "cost", "differences")
    figures = {f"figures/{name}.{kind}" for name in pictures for kind in ("png", "pdf")}
    differences = (f"differences-to-{base}-{pair}" for base in ("student", "kd") for pair in RANKED)
    rankings = (f"ranking-{pair}" for pair in RANKED)
    names = ("accuracy", "cost", "compression", "published", "ranks", "failures", *rankings, *differences)
    tables = {f"tables/{name}.{kind}" for name in names for kind in ("csv", "tex", "parquet", "json")}
    assert figures | tables | {"report.html", "report.md", "summary.json", "trials.csv"} == written
    assert (report.folder / "figures/cost.png").read_bytes().startswith(b"\x89PNG")
    assert (report.folder / "figures/cost.pdf").read_bytes().startswith(b"%PDF")


def test_parquet_holds_the_numbers_with_their_types(report):
    found = pd.read_parquet(report.folder / "tables/accuracy.parquet")
    as_text = pd.read_csv(report.folder / "tables/accuracy.csv").fillna({"not_counted": ""})
    pd.testing.assert_frame_equal(found, as_text, check_dtype=False)
    assert found["mean"].dtype == float


def test_parquet_of_values_of_several_types(tmp_path):
    values = {"value": [0.5, "auto", None], "n": [1, 2, 3], "list": [[1, "a"], [2], None], "path": [Path("a"), None, 1]}
    mixed = pd.concat([pd.DataFrame(values, dtype=object).astype({"n": int}), pd.Series([7, 7, 7], name="n")], axis=1)
    (tmp_path / "mixed.parquet").write_bytes(formats.parquet(mixed))
    found = pd.read_parquet(tmp_path / "mixed.parquet")
    assert found["value"].tolist()[:2] == ["0.5", "auto"]
    assert pd.isna(found["value"].iloc[2])
    assert found["n"].tolist() == [1, 2, 3]


def test_the_page_needs_no_other_file(report):
    text = report.html.read_text()
    links = re.findall(r'(?:src|href)="([^"#][^"]{0,30})', text)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert text.count("<script") == 1, "the one that sorts tables"
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
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def test_a_users_words_stay_words(tmp_path):
    made = make(nasty(), tmp_path)
    assert made.problems == ()
    tags = Tags()
    tags.feed(made.html.read_text())
    assert tags.found.count("script") == 1, "the page's own"
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
    columns = len(re.sub(r"\[.*?\]", "", re.search(r"\\begin\{tabular\}\{(.+)\}", text)[1]))
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


def test_console_and_note_are_the_accuracy_table(report, tmp_path):
    shown = report.shown["wrn_16_2 ← wrn_40_2"]
    assert list(shown.index) == ["teacher", "student", "kd", "ot", "ot+kd"]
    assert "Δ to kd, paired" in shown
    assert "| teacher | 75.61" in report.markdown
    assert "22 of 24 student trials finished" in report.markdown
    assert make(Sweep(), tmp_path).shown == {}


def test_the_terminal_shows_a_table_per_pair_that_fits(report):
    console = Console(width=200, file=io.StringIO())
    cli.show_tables(report.shown, "demo", console)
    shown = console.file.getvalue()
    for student, teacher in PAIRS:
        assert f"demo: {student} ← {teacher}" in shown
    lines = [line.rstrip() for line in shown.splitlines() if line[:1] in "┏┃┡│└"]
    assert len([line for line in lines if line.startswith("│ ot+kd")]) == len(PAIRS)
    assert max(map(len, lines)) <= 120


def test_sentences_claim_no_more_than_the_numbers(record):
    told = summary.sentences(frame.trials(record))
    assert "ot+kd has the highest mean" in told[1]
    assert "Not ranked: ot, 74.80 % (n = 1); diverged ×1, missing ×1." in told[1]
    sweep = Sweep()
    for seed, (one, two) in enumerate([(70.0, 70.4), (70.5, 70.2), (70.1, 70.3)]):
        sweep.student("student", one, seed)
        sweep.student("kd", two, seed)
    assert "no larger than its own spread" in summary.sentences(frame.trials(sweep.record()))[1]


def test_what_chance_does_not_explain_is_told_per_baseline(record):
    to_student, to_kd = summary.sentences(frame.trials(record))[-2:]
    assert to_student.startswith("Against student, by the paired t-test, Holm-corrected")
    assert to_kd.startswith("Against kd, by the paired t-test, Holm-corrected")
    assert "at 5 %, better: kd by 1.49 points on 2 of 2 pairs, ot by 1.79 points on 1 of 2 pairs" in to_student
    assert to_kd.endswith(
        "ot+kd by 0.91 points on 2 of 2 pairs; worse: student by 1.49 points on 2 of 2 pairs; cannot be tested: ot."
    )
    sweep = Sweep()
    for seed, (one, two) in enumerate([(70.0, 70.4), (70.5, 70.2), (70.1, 70.3)]):
        sweep.student("student", one, seed)
        sweep.student("kd", two, seed)
    assert summary.sentences(frame.trials(sweep.record()))[-2].endswith("at 5 %, within noise: kd.")


def compared(*methods: str) -> Sweep:
    """A sweep of three seeds of each method, in which methods named `lost…` diverged and the others rise in order."""
    sweep = Sweep()
    for index, method in enumerate(methods):
        for seed in range(3):
            top1 = np.nan if method.startswith("lost") else 70.0 + index + seed / 10
            status = "diverged" if method.startswith("lost") else "finished"
            sweep.student(method, top1, seed, status=status, terms=("ce", method))
    return sweep


@pytest.mark.parametrize("place", range(4))
def test_a_method_without_a_figure_does_not_upset_the_order(place):
    methods = ["low", "middle", "high"]
    methods.insert(place, "lost")
    told = summary.sentences(frame.trials(compared(*methods).record()))[1]
    assert "high has the highest mean" in told
    assert "lead over the next, middle," in told
    assert told.endswith("Not ranked: lost, no figure (diverged ×3).")


def test_every_method_without_a_figure_is_named():
    sweep = compared("a", "lost1", "b", "lost2")
    sweep.student("elsewhere", 70.0, pair=PAIRS[1], terms=("ce", "elsewhere"))
    first, second = summary.sentences(frame.trials(sweep.record()))[1:]
    assert first.endswith(
        "Not ranked: lost1, no figure (diverged ×3); lost2, no figure (diverged ×3); "
        "elsewhere, no figure (not in the sweep)."
    )
    assert "elsewhere has the highest mean" in second
    (told,) = summary.sentences(frame.trials(compared("lost").record()))[1:]
    assert told.endswith("no student has finished, so there is no figure.")


def converging(**shares: tuple[float, ...]) -> Sweep:
    """One trial per share; each ends with that share of converged solves."""
    sweep = Sweep()
    for method, values in shares.items():
        for seed, share in enumerate(values):
            sweep.student(method, 70.0, seed, terms=("ce", "x"), **{names.term("x", "converged"): share})
    return sweep


def test_solves_that_did_not_converge_are_told_first():
    sweep = converging(good=(1.0, 1.0), some=(1.0, 0.875), almost=(0.99999, 1.0), none=(0.0, np.nan))
    sweep.student("student", 70.0)
    progress, told, _ = summary.sentences(frame.trials(sweep.record()))
    assert progress == "All 9 student trials finished."
    assert "is, at its lowest over the trials of a method, 0 % for none, 87.5 % for some, 99.9 % for almost." in told
    assert "good" not in told
    assert "student" not in told


@pytest.mark.parametrize(("top1", "said"), [(69.9, True), (70.19, True), (70.3, False)])
def test_a_teacher_without_anything_to_teach_is_named(top1, said):
    sweep = Sweep()
    sweep.teacher(PAIRS[0][1], top1)
    for seed, alone in enumerate((70.1, 70.3)):
        sweep.student("student", alone, seed)
        sweep.student("kd", 71.0, seed)
    told = [words for words in summary.sentences(frame.trials(sweep.record())) if "the teacher" in words]
    assert len(told) == said
    words = f"the teacher, {top1:.2f} % (n = 1), is no better than student, 70.20 ± 0.14 % (n = 2)"
    assert not said or words in told[0]


def test_a_teacher_that_is_worse_calibrated_may_have_much_to_teach():
    sweep, ece = Sweep(), names.test("last", "ece")
    sweep.teacher(PAIRS[0][1], 80.0)
    sweep.rows[-1].metrics[ece] = 9.0
    for seed in (0, 1):
        sweep.student("student", 70.0, seed, **{ece: 5.0})
    trials = choice.choose(frame.trials(sweep.record()), ece, None)
    assert not any("no better than" in words for words in summary.sentences(trials))


def test_a_stage_and_a_diverged_trial_count_as_not_converged():
    sweep = Sweep()
    sweep.student("ot", status="diverged", **{"hint/train/any term/converged": 0.5})
    assert "50 % for ot" in summary.sentences(frame.trials(sweep.record()))[1]


@pytest.mark.parametrize("sweep", [Sweep(), full_sweep(), converging(ot=(1.0, np.nan))], ids=["empty", "full", "good"])
def test_nothing_is_said_where_all_converged(sweep):
    assert not any("converge" in sentence for sentence in summary.sentences(frame.trials(sweep.record())))


def test_the_page_says_what_did_not_converge(tmp_path):
    made = make(converging(ot=(0.5,)), tmp_path)
    for text in (made.html.read_text(), (tmp_path / "report.md").read_text(), made.markdown):
        assert "50 % for ot" in text


def test_a_report_is_of_another_sweep_where_the_settings_are_others_and_not_where_the_store_is(tmp_path):
    record, layout = full_sweep().record(), Layout(tmp_path)
    make(full_sweep(), layout.reports / record.info.name)
    assert not cli._replaces_another(layout, record.info)
    assert cli._replaces_another(layout, record.info.model_copy(update={"key": "fedcba9876543210"}))


def test_a_report_knows_the_record_that_it_was_made_from(tmp_path):
    sweep = full_sweep()
    record = sweep.record()
    assert not render.is_current(tmp_path / "absent", record)
    made = make(sweep, tmp_path)
    assert made.paths[-1] == made.html, "written last, so that a report cut short is not current"
    assert f'<meta name="otkd-trials" content="{render.states(record)}">' in made.html.read_text()
    assert render.is_current(tmp_path, record)
    assert render.is_current(tmp_path, record._replace(trials=record.trials[::-1], started=0.0)), (
        "the order is no matter"
    )
    assert not render.is_current(tmp_path, record._replace(run_id="another"))
    assert not render.is_current(tmp_path, record._replace(trials=record.trials[:-1]))
    retried = [row._replace(status="finished") if row.status == "diverged" else row for row in record.trials]
    assert not render.is_current(tmp_path, record._replace(trials=tuple(retried)))
    made.html.write_bytes(b"\xff not a report")
    assert not render.is_current(tmp_path, record)


def test_a_report_says_when_its_sweep_was_last_begun(report):
    assert "- sweep last begun: 2025-10-09 08:53 UTC" in (report.folder / "report.md").read_text()
    assert "last begun 2025-10-09 08:53 UTC" in report.html.read_text()


def test_a_strange_run_id_is_recognised(tmp_path):
    record = one_seed().record()._replace(run_id='<a href="x">&amp;')
    render.build(record, None, tmp_path)
    assert render.is_current(tmp_path, record)


def test_a_method_has_one_colour_and_the_baseline_is_grey(record):
    looks = style.looks(frame.trials(record))
    assert looks["student"].colour == style.FLOOR
    assert len({look.colour for look in looks.values()}) == 4
    many = Sweep()
    for index in range(40):
        many.student(f"m{index}", 70.0, terms=("ce", "x"))
    shown = style.looks(frame.trials(many.record())).values()
    assert len({(look.colour, look.marker) for look in shown}) == 40, "no two look alike where there are no lines"


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
    monkeypatch.setattr(reader, "curves", lambda layout, run_ids, metric: Columns(*np.empty((3, 0), int)))
    made = render.write_report(Layout(tmp_path), "demo")
    assert made.html == tmp_path / "reports/demo/report.html"
    assert made.html.exists()


@pytest.mark.parametrize("name", ["demo", None])
@pytest.mark.parametrize("planned", [True, False])
def test_a_sweep_that_is_recorded_elsewhere_is_not_denied(tmp_path, monkeypatch, name, planned):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = Layout(tmp_path)
    layout.records.mkdir()
    (layout.records / f"{'demo' if planned else 'another-one'}.plan.json").touch()
    with pytest.raises(OtkdError, match=r"nothing is recorded in sqlite:///.*/mlflow\.db yet") as refused:
        render.write_report(layout, name)
    assert ("demo.plan.json says that it was run here" in str(refused.value)) is planned
    assert ("set MLFLOW_TRACKING_URI as it was then." in str(refused.value)) is (planned or name is None)


@pytest.mark.parametrize(
    ("uri", "store"),
    [("postgresql://me:secret@host/x", "the store of MLFLOW_TRACKING_URI"), ("", r".*/mlflow\.db")],
)
def test_a_store_without_the_sweep_is_named(tmp_path, monkeypatch, uri, store):
    def unknown(layout, name):
        raise OtkdError(plugins.unknown("sweep", name, ["other"]))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(reader, "read_sweep", unknown)
    with pytest.raises(OtkdError, match=rf"^{store}: there is no sweep 'demo'; there is other\.$"):
        render.write_report(Layout(tmp_path), "demo")


def test_users_reference_rows_reach_the_page(tmp_path):
    extra = tmp_path / "mine.csv"
    teacher, student = PAIRS[0][1], PAIRS[0][0]
    extra.write_text(f"{','.join(references.COLUMNS)}\ncifar100,{teacher},{student},MyOT,75.5,last epoch,my paper\n")
    made = render.build(one_seed().record(), None, tmp_path / "out", references=extra)
    assert "MyOT" in made.html.read_text()


@pytest.mark.parametrize(
    "content", [None, "", "dataset,teacher\nx,y\n", f"{','.join(references.COLUMNS)}\na,b,c,d,high,f,g\n"]
)
def test_unreadable_references_end_the_report_before_it_begins(tmp_path, monkeypatch, content):
    extra = tmp_path / "mine.csv"
    if content is not None:
        extra.write_text(content)
    monkeypatch.setattr(reader, "read_sweep", lambda *_: pytest.fail("the sweep was read first"))
    wanted = rf"mine\.csv: .*columns {', '.join(references.COLUMNS)}"
    with pytest.raises(OtkdError, match=wanted):
        render.write_report(Layout(tmp_path), "demo", extra)
    with pytest.raises(OtkdError, match=wanted):
        render.build(one_seed().record(), None, tmp_path / "out", extra)
    assert not (tmp_path / "out").exists()


def plugin(monkeypatch, table) -> None:
    """Let the tables of a report be those of accuracy, and of `cost` what `table` gives."""
    monkeypatch.setattr(plugins.load("tables", "cost"), "table", table)
    monkeypatch.setattr(render.plugins, "names", lambda group: ["accuracy", "cost"] if group == "tables" else [])


def of(data: object, name: str = "cost", cell: object = "1", **more) -> Table:
    shown = pd.DataFrame({"a": [cell]}, index=pd.Index(["x"], name="method"), dtype=object)
    return Table(name, "Mine", "What it is.", shown, pd.DataFrame({"a": pd.Series([data], dtype=object)}), **more)


@pytest.mark.parametrize("value", [2**70, 1j, b"\xff", {}, object()], ids=lambda value: type(value).__name__)
def test_numbers_that_a_form_cannot_hold_are_text(tmp_path, monkeypatch, value):
    plugin(monkeypatch, lambda trials, info: [of(value)])
    made = make(one_seed(), tmp_path)
    assert made.problems == ()
    found = pd.read_parquet(tmp_path / "tables/cost.parquet")["a"].item()
    assert str(value)[:5] in str(found)
    assert json.loads((tmp_path / "tables/cost.json").read_text())["columns"] == ["a"]


def test_a_file_that_cannot_be_made_is_named_and_left_out(tmp_path, monkeypatch):
    plugin(monkeypatch, lambda trials, info: [of("\ud800")])
    made = make(one_seed(), tmp_path)
    assert {problem.split(":")[0] for problem in made.problems} == {
        f"tables/cost.{form}" for form in ("csv", "parquet", "json")
    }
    assert "tables/cost.csv: UnicodeEncodeError" in made.html.read_text()
    assert (tmp_path / "tables/cost.tex").exists()
    assert not (tmp_path / "tables/cost.csv").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pd.DataFrame({"a": [1]}), "table() gave a DataFrame where an otkd.report.table.Table is wanted"),
        (of(1, cell=0.5), "names, cells and caption of a table are text; cost has 0.5"),
        (of(1, bold=frozenset({(7, 0)})), "IndexError"),
        (of(1, cell="\ud800"), "UnicodeEncodeError"),
    ],
)
def test_a_table_that_no_page_can_show_costs_itself_only(tmp_path, monkeypatch, table, said):
    plugin(monkeypatch, lambda trials, info: [table])
    made = make(one_seed(), tmp_path)
    (problem,) = made.problems
    assert problem.startswith("table cost: ")
    assert said in problem
    assert made.html.exists()


@pytest.mark.parametrize("spoiled", ["TITLE", "ORDER"])
def test_a_plugin_without_a_title_or_with_a_false_place_costs_itself_only(tmp_path, monkeypatch, spoiled):
    plugin(monkeypatch, lambda trials, info: [of(1)])
    if spoiled == "TITLE":
        monkeypatch.delattr(plugins.load("tables", "cost"), "TITLE")
    else:
        monkeypatch.setattr(plugins.load("tables", "cost"), "ORDER", "first")
    assert [problem.split(":")[0] for problem in make(one_seed(), tmp_path).problems] == ["table cost"]


def test_two_tables_of_one_name_have_files_of_their_own(tmp_path, monkeypatch):
    plugin(monkeypatch, lambda trials, info: [of(1), of(2)])
    assert make(one_seed(), tmp_path).problems == ()
    found = [pd.read_csv(tmp_path / f"tables/{name}.csv")["a"].item() for name in ("cost", "cost-2")]
    assert found == [1, 2]
    assert r"\label{tab:cost-2}" in (tmp_path / "tables/cost-2.tex").read_text()


def test_a_table_for_latex_names_its_data_set(tmp_path):
    sweep = one_seed()
    sweep.dataset = "folder/a_b"
    make(sweep, tmp_path)
    assert r"\caption{Test accuracy, last epoch, on folder/a\_b. " in (tmp_path / "tables/accuracy.tex").read_text()


def uneven() -> Sweep:
    """`kd` is better on one pair and cannot be tested on the other; `ot` within noise on one, untested on the other."""
    sweep = Sweep()
    for seed, (alone, ot) in enumerate([(70.0, 70.4), (70.5, 70.2), (70.1, 70.3)]):
        sweep.student("student", alone, seed)
        sweep.student("kd", alone + 2 + seed / 100, seed)
        sweep.student("ot", ot, seed)
        sweep.student("student", alone, seed, PAIRS[1])
    for method in ("kd", "ot"):
        sweep.student(method, 72.0, 0, PAIRS[1])
    return sweep


def test_what_is_true_of_a_method_is_told_pair_by_pair():
    told = summary.sentences(frame.trials(uneven().record()))
    to_student = next(words for words in told if words.startswith("Against student"))
    assert to_student.endswith(
        "Holm-corrected over the 2 tests of a pair, at 5 %, better: kd by 2.01 points on 1 of 2 pairs; "
        "within noise: ot on 1 of 2 pairs; cannot be tested: kd on 1 of 2 pairs, ot on 1 of 2 pairs."
    )


def tied() -> Sweep:
    """Two methods whose means and differences are the same but for the rounding of floats."""
    sweep = Sweep()
    for seed, (one, two) in enumerate(
        [(96.7, 96.69999999999999), (96.1, 96.10000000000001), (96.30000000000001, 96.3)]
    ):
        sweep.student("student", one - 3, seed)
        sweep.student("kd", one, seed)
        sweep.student("ot", two, seed)
    return sweep


def test_the_rounding_of_floats_decides_nothing():
    trials = frame.trials(tied().record())
    told = summary.sentences(trials)
    assert (
        "kd and ot have the same highest mean test accuracy, 96.37 ± 0.31 % (n = 3) and 96.37 ± 0.31 % (n = 3)"
        in told[1]
    )
    assert "−0.00" not in " ".join(told)
    (table,) = plugins.load("tables", "accuracy").table(trials, None)
    assert [table.frame.index[row] for row, _ in sorted(table.bold)] == ["kd", "ot"]
    assert table.flat().loc["ot"].iloc[2] == "0.00 ± 0.00"
    order = plugins.load("tables", "ranking")._ranked(trials, "wrn_16_2 ← wrn_40_2")
    assert order.set_index("method")["rank_accuracy"].to_dict() == {"kd": 1, "ot": 1, "student": 3}


@pytest.mark.parametrize(
    ("value", "digits", "sign", "shown"),
    [
        (-0.001, 2, True, "0.00"),
        (-0.0, 2, False, "0.00"),
        (0.004, 2, True, "0.00"),
        (-0.006, 2, True, "−0.01"),
        (0.006, 2, True, "+0.01"),
        (-0.4, 0, True, "0"),
        (np.float64(-1e-14), 4, True, "0.0000"),
    ],
)
def test_nought_has_no_sign(value, digits, sign, shown):
    assert stats.number(value, digits, sign) == shown
