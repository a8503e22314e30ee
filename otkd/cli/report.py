"""`otkd report`: a sweep's tables and figures again, of several sweeps side by side, and what differs between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otkd.cli.options import Debug, Runs, console_for
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from otkd.report.diff import Diff
    from otkd.report.options import Options
    from otkd.report.render import Report
    from otkd.track.reader import SweepRecord

    Rebuild = Callable[[Sequence[str]], Report]


def report(
    sweeps: Annotated[
        list[str] | None,
        typer.Argument(help="Names of sweeps, side by side if several; the last one by default.", show_default=False),
    ] = None,
    runs: Runs = Path("runs"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="html, md, pdf, csv, tex, parquet, json or png. Repeatable; all that can be made by default.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A table or figure, by the name of its file: --only accuracy. Repeatable; all by default."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="The figure that tables compare: test/best/top1, val/best/top1, test/last/top5, loss, …; "
            "test/last/top1 by default.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The method that others are held against; by default the student alone and KD.", show_default=False
        ),
    ] = None,
    references: Annotated[Path | None, typer.Option(help="A CSV with reference rows of your own.")] = None,
    mixed_budgets: Annotated[
        bool,
        typer.Option("--mixed-budgets", help="Let sweeps with different budgets stand in one table, which says so."),
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="What differs between two sweeps: `otkd report --diff A B`.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Go on until the sweep is over: again whenever a trial has changed its state."),
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks of --watch.", min=0.1)] = 30,
    to: Annotated[
        Path | None,
        typer.Option(help="The folder for the report's folder; by default reports/ under --runs.", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Rebuild tables and figures of a sweep from MLflow; several sweeps side by side, or what differs between two."""
    from otkd.report.options import checked

    layout, console, asked = Layout(runs), console_for(), list(sweeps or ())
    options = checked(formats or (), only or (), metric, baseline)
    if diff:
        given = {
            "--format": formats,
            "--only": only,
            "--baseline": baseline,
            "--watch": watch,
            "--references": references,
        }
        _expect_two(asked, [name for name, value in given.items() if value])
        _diff(layout, asked, options, to, console)
        return
    from otkd.report.render import write_report

    options = _with_browser(options, bool(formats), console)

    def rebuild(names: Sequence[str]) -> Report:
        return write_report(layout, list(names) or None, references, options, mixed=mixed_budgets, to=to)

    if watch:
        _watch(layout, asked, rebuild_of=rebuild, every_s=every, console=console)
        return
    written = rebuild(asked)
    if not written.new:
        console.print("Nothing is new since this report was made.", highlight=False)
    show_tables(written.shown, written.folder.name, console)
    _show_written(written, console)
    if formats and "pdf" in formats and written.folder / "report.pdf" not in written.paths:
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


def _show_written(written: Report, console: Console) -> None:
    """Where the report lies, and what of it could not be made."""
    from rich.markup import escape

    place = written.html if written.html in written.paths else written.folder
    console.print(f"report: {escape(str(place))}", highlight=False, soft_wrap=True)
    for problem in written.problems:
        console.print(f"[yellow]![/] the report lacks {escape(problem)}", highlight=False, soft_wrap=True)


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
    folder = (to or layout.reports) / f"{found.left}-{found.right}"
    write_text(folder / "diff.csv", diffs.csv(found))
    write_text(folder / "diff.md", diffs.markdown(found))
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


def _watch(layout: Layout, asked: Sequence[str], *, rebuild_of: Rebuild, every_s: float, console: Console) -> None:
    """Write the report again whenever a trial's state has changed; one line each time."""
    from otkd.report.watch import is_settled, watch
    from otkd.sweep.lock import owner
    from otkd.track.reader import read_sweep

    names: list[str] = list(asked)

    def tell(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False, markup=False, soft_wrap=True)

    def look() -> list[SweepRecord]:
        records = [read_sweep(layout, name) for name in names] or [read_sweep(layout)]
        names[:] = [record.info.name for record in records]  # the last sweep stays the one, whatever begins meanwhile
        return records

    def rebuild() -> None:
        began = time.monotonic()
        written = rebuild_of(names)
        seconds = time.monotonic() - began
        lacks = "".join(f"; it lacks {problem}" for problem in written.problems)
        tell(f"{written.progress} {written.folder} written in {seconds:.1f} s{lacks}")

    def is_over(records: Sequence[SweepRecord]) -> bool:
        runs_here = owner(layout)
        return all(map(is_settled, records)) and (runs_here is None or runs_here.sweep not in names)

    try:
        watch(look, rebuild, is_over, tell, every_s)
    except KeyboardInterrupt:
        tell("stopped; the report stays as it is.")
    else:
        tell("the sweep is over.")
