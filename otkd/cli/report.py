"""`otkd report`: a sweep's tables and figures again, of several sweeps side by side, and what differs between two."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otkd.cli.options import Debug, Runs, console_for
from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from otkd.report.diff import Diff
    from otkd.report.options import Options
    from otkd.report.render import Report
    from otkd.track.reader import SweepRecord

EVERY_S = 30.0
"""Seconds between two looks of --watch unless told otherwise."""

Sweeps = Annotated[
    list[str] | None,
    typer.Argument(help="Names of sweeps, side by side if several; the last one by default.", show_default=False),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format", help="html, md, pdf, csv, tex, parquet, json or png. Repeatable; all that can be made by default."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(help="A table or figure, by the name of its file: --only accuracy. Repeatable; all by default."),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="The figure that tables compare: test/best/top1, val/best/top1, test/last/top5, loss, …; "
        "test/last/top1 by default.",
        show_default=False,
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="The method that others are held against; by default the student alone and KD.", show_default=False
    ),
]
References = Annotated[Path | None, typer.Option(help="A CSV with reference rows of your own.")]
Mixed = Annotated[
    bool, typer.Option("--mixed-budgets", help="Let sweeps with different budgets stand in one table, which says so.")
]
DiffOnly = Annotated[bool, typer.Option("--diff", help="What differs between two sweeps: `otkd report --diff A B`.")]
Watch = Annotated[
    bool, typer.Option("--watch", help="Go on until the sweep is over: again whenever a trial has changed its state.")
]
Every = Annotated[
    float | None,
    typer.Option(help=f"Seconds between two looks of --watch; {EVERY_S:g} by default.", min=0.1, show_default=False),
]
To = Annotated[
    Path | None,
    typer.Option(help="The folder for the report's folder; by default reports/ under --runs.", show_default=False),
]


def report(
    sweeps: Sweeps = None,
    runs: Runs = Path("runs"),
    formats: Formats = None,
    only: Only = None,
    metric: Metric = None,
    baseline: Baseline = None,
    references: References = None,
    mixed_budgets: Mixed = False,
    diff: DiffOnly = False,
    watch: Watch = False,
    every: Every = None,
    to: To = None,
    debug: Debug = False,
) -> None:
    """Rebuild tables and figures of a sweep from MLflow; several sweeps side by side, or what differs between two."""
    from otkd.report.options import checked

    layout, console, asked = Layout(runs), console_for(), list(sweeps or ())
    options = checked(formats or (), only or (), metric, baseline)
    if every is not None and not watch:
        raise OtkdError("--every says how often --watch looks: add --watch, or leave --every out.")
    if diff:
        given = {
            "--format": formats,
            "--only": only,
            "--baseline": baseline,
            "--watch": watch,
            "--mixed-budgets": mixed_budgets,
            "--references": references,
        }
        _expect_two(asked, [name for name, value in given.items() if value])
        _diff(layout, asked, options, to, console)
        return
    options = _with_browser(options, bool(formats), console)
    from otkd.report.render import report_of, write_report

    if watch:
        write = partial(report_of, layout, references=references, options=options, mixed=mixed_budgets, to=to)
        _watch(layout, asked, write, every or EVERY_S, console)
        return
    written = write_report(layout, asked or None, references, options, mixed=mixed_budgets, to=to)
    if not written.new:
        console.print("Nothing is new since this report was made.", highlight=False)
    show_tables(written.shown, written.folder.name, console)
    show_written(written, console)
    if written.problems:
        raise typer.Exit(1)


def show_tables(tables: Mapping[str, pd.DataFrame], title: str, console: Console) -> None:
    """The main table, pair by pair."""
    for pair, frame in tables.items():
        _show_frame(frame, f"{title}: {pair}", console)


def _show_frame(frame: pd.DataFrame, title: str, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, [str(frame.index.name or ""), *map(str, frame.columns)]), title=escape(title))
    for name, row in zip(frame.index, frame.to_numpy(), strict=True):
        table.add_row(escape(str(name)), *(escape(str(cell)) for cell in row))
    console.print(table)


def show_written(written: Report, console: Console) -> None:
    """Where the report lies, and what of it could not be made."""
    from rich.markup import escape

    place = written.html if written.html in written.paths else written.folder
    console.print(f"report: {escape(str(place))}", highlight=False, soft_wrap=True)
    for problem in written.problems:
        console.print(f"[yellow]![/] the report lacks {escape(problem)}", highlight=False, soft_wrap=True)


def show_unwritten(error: OtkdError, name: str, runs: Path, console: Console) -> None:
    """Why a sweep that was trained has no report, and what makes one."""
    from rich.markup import escape

    folder = "" if runs == Path("runs") else f" --runs {shlex.quote(str(runs))}"
    ways = f"The same command again makes it and keeps it in MLflow; `otkd report {name}{folder}` makes it alone."
    text = f"there is no report: {error} What was trained is kept. {ways}"
    console.print(f"[red]![/] {escape(text)}", highlight=False, soft_wrap=True)


def _with_browser(options: Options, named: bool, console: Console) -> Options:
    """The options with the browser that prints the page, if a PDF is wanted.

    Args:
        named: whether forms were asked for by name: then a PDF that cannot be made is an error.
    """
    if "pdf" not in options.formats:
        return options
    from otkd.report import pdf

    found = pdf.browser()
    if found is None and named:
        raise OtkdError(f"--format pdf: {pdf.GET_IT}.")
    if found is None:
        console.print(f"no report.pdf: {pdf.GET_IT}.", highlight=False, soft_wrap=True)
    return options._replace(browser=found)


def _expect_two(names: Sequence[str], refused: Iterable[str]) -> None:
    others = list(refused)
    if len(names) != 2:
        raise OtkdError(f"--diff takes two sweeps, and {len(names)} came: `otkd report --diff A B`.")
    if others:
        raise OtkdError(f"--diff does not go with {', '.join(others)}; it takes --metric, --runs and --to.")


def _diff(layout: Layout, names: Sequence[str], options: Options, to: Path | None, console: Console) -> None:
    """Print what differs from one sweep to another, and write it beside the reports."""
    from otkd.core.layout import write_text
    from otkd.report import choice
    from otkd.report import diff as diffs
    from otkd.report.render import read

    left, right = (read(layout, name) for name in names)
    found = diffs.compare(left, right, choice.METRICS[options.metric])
    folder = (to or layout.reports) / found.folder
    try:
        write_text(folder / "diff.csv", diffs.csv(found))
        write_text(folder / "diff.md", diffs.markdown(found))
    except StorageError as error:
        raise StorageError(f"{error} --to FOLDER writes elsewhere.") from error
    _show_diff(found, console)
    console.print(f"written: {folder / 'diff.md'} and diff.csv", highlight=False, markup=False, soft_wrap=True)


def _show_diff(found: Diff, console: Console) -> None:
    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for sweep, methods in found.only.items():
        if methods:
            line(f"only in {sweep}: {', '.join(methods)}")
    if found.figures is None:
        line("no method on a pair is in both.")
    for table in (found.figures, found.settings, found.provenance):
        if table is not None:
            _show_frame(table.frame, table.title, console)
    if found.figures is not None:
        line(found.figures.caption)
    if found.yaml:
        line(found.yaml)


def _watch(
    layout: Layout,
    asked: Sequence[str],
    write: Callable[[Sequence[SweepRecord]], Report],
    every_s: float,
    console: Console,
) -> None:
    """Write the report again whenever a trial's state has changed; one line each time."""
    from otkd.report.render import recorded
    from otkd.report.watch import is_settled, watch
    from otkd.sweep.lock import owner

    names: list[str] = list(asked)

    def tell(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False, soft_wrap=True)

    def look() -> list[SweepRecord]:
        records = recorded(layout, names or [None])
        names[:] = [record.info.name for record in records]  # the last sweep stays the one, whatever begins meanwhile
        return records

    def rebuild(records: Sequence[SweepRecord]) -> bool:
        began = time.monotonic()
        written = write(records)
        done = f"written in {time.monotonic() - began:.1f} s" if written.new else "is as it was"
        lacks = "".join(f"; it lacks {problem}" for problem in written.problems)
        tell(f"{written.progress} {written.folder} {done}{lacks}")
        return not written.problems

    def is_over(records: Sequence[SweepRecord]) -> bool:
        runs_here = owner(layout)
        return all(map(is_settled, records)) and (runs_here is None or runs_here.sweep not in names)

    try:
        watch(look, rebuild, is_over, tell, every_s)
    except KeyboardInterrupt:
        tell("stopped; the report stays as it is.")
    else:
        tell("the sweep is over.")
