"""The commands. Thin: each imports its layer when it is called, so that `otkd --help` answers at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otkd import cli_data
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    from rich.console import Console

    from otkd.sweep.plan import Plan
    from otkd.train.export import Exported

app = typer.Typer(
    help="Which distillation loss makes the best student? A YAML file asks, one command answers with a table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_data.app, name="data")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells and typer have it."""

Sweep = Annotated[Path, typer.Argument(help="The sweep file, e.g. sweeps/demo.yaml.", show_default=False)]
Profile = Annotated[
    str, typer.Option(help="`auto` (quick without a GPU), `paper` (the file as it is) or one of the file's.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=3. Repeatable.")]
Runs = Annotated[Path, typer.Option(help="Where state, records and reports lie.", envvar="OTKD_RUNS")]
DataDir = Annotated[Path | None, typer.Option(help="A folder with local copies of data sets.", envvar="OTKD_DATA_DIR")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def main() -> None:
    """Entry point: one clear message for what the user can mend, a traceback only with --debug."""
    if "--debug" in sys.argv:
        logging.basicConfig()
        logging.getLogger("otkd").setLevel(logging.DEBUG)
        app()
        return
    try:
        app()
    except OtkdError as error:
        typer.echo(f"otkd: {error}", err=True)
        raise SystemExit(1) from None
    except Exception as error:
        typer.echo(f"otkd: unexpected {type(error).__name__}: {error}\nThe same with --debug shows where.", err=True)
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("\notkd: stopped. The same command goes on from here.", err=True)
        raise


@app.command()
def plan(
    sweep: Sweep,
    profile: Profile = "auto",
    overrides: Set = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Print a sweep's trials, their number and what is already done. Starts nothing."""
    from otkd.sweep.show import show_plan

    layout = Layout(runs)
    show_plan(_plan(sweep, profile, overrides, data_dir, layout), layout, _console())


@app.command()
def sweep(
    sweep: Sweep,
    profile: Profile = "auto",
    overrides: Set = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    address: Annotated[str, typer.Option(help="A running Ray cluster to join.", envvar="RAY_ADDRESS")] = "local",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    debug: Debug = False,
) -> None:
    """Train what is not done yet, log it to MLflow, write the report. Stop it any time: the same command goes on."""
    layout, console = Layout(runs), _console()
    made = _plan(sweep, profile, overrides, data_dir, layout)
    from otkd.report.render import write_report
    from otkd.sweep.session import Options, Session
    from otkd.sweep.show import show_outcome, show_warnings

    show_warnings(made, console)
    with Session(made, layout, console) as session:
        replayed = session.replay()
        if made.pending(layout):
            session.train(Options(data_dir, local, address, device))
        elif not replayed and _reported(layout, made.info.name):
            console.print(f"{made.info.name}: nothing to do, all {len(made.trials)} trials are done.", highlight=False)
            _show_table(layout, made.info.name, console)
            return
        session.flush()
        if _replaces_another(layout, made.info.name, session.tracker.run_id):
            console.print(
                f"This replaces the report of {made.info.name} with other settings; their command brings it back.",
                highlight=False,
            )
        written = write_report(layout, made.info.name)
        session.tracker.attach_report(written.folder, written.markdown)
        _show_table(layout, made.info.name, console, written.problems)
    raise typer.Exit(show_outcome(made, layout, console))


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(help="Name of the sweep; the last one by default.")] = None,
    runs: Runs = Path("runs"),
    references: Annotated[Path | None, typer.Option(help="A CSV with reference rows of your own.")] = None,
    debug: Debug = False,
) -> None:
    """Rebuild tables and figures of a sweep from MLflow."""
    from otkd.report.render import write_report

    written = write_report(Layout(runs), name, references=references)
    _show_table(Layout(runs), written.folder.name, _console(), written.problems)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Serve the MLflow UI on 127.0.0.1."""
    from otkd.track.store import serve_ui

    raise typer.Exit(serve_ui(Layout(runs), port))


@app.command()
def export(
    key: Annotated[str, typer.Argument(help="A trial, by its key or the beginning of it (`otkd plan` shows keys).")],
    to: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("exports"),
    forms: Annotated[
        list[str] | None,
        typer.Option(
            "--form", help="state_dict, safetensors, program (torch.export) or onnx. Repeatable; all by default."
        ),
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The weights that were best on validation, not the last.")
    ] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a trained network as files for other programs, read each back and compare it with the network."""
    from otkd.train.checkpoint import load_weights
    from otkd.train.export import export, find

    trial, file = find(Layout(runs), key, best)
    made = export(trial, load_weights(file), to, tuple(forms or ()), "-best" if best else "")
    _show_exports(made, _console())


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="losses, models, data, solvers or sweeps.", show_default=False)],
    debug: Debug = False,
) -> None:
    """List what a sweep file can name, with every setting and its default."""
    from otkd.sweep.show import show_list

    show_list(what, _console())


@app.command()
def schema(
    output: Annotated[Path, typer.Option(help="Where to write it.")] = Path("docs/sweep.schema.json"),
    debug: Debug = False,
) -> None:
    """Write the JSON schema of sweep files, for editors."""
    from otkd.core.layout import write_text
    from otkd.sweep.schema import sweep_schema_text

    write_text(output, sweep_schema_text())
    _console().print(f"{output} written.", highlight=False)


def _plan(sweep: Path, profile: str, overrides: list[str] | None, data_dir: Path | None, layout: Layout) -> Plan:
    from otkd.sweep.plan import make
    from otkd.sweep.spec import load

    return make(load(sweep, profile, overrides or ()), data_dir, layout.cache)


def _reported(layout: Layout, name: str) -> bool:
    """Whether the report that lies there says what is on record now."""
    from otkd.report.render import is_current
    from otkd.track.reader import read_sweep

    return is_current(layout.reports / name, read_sweep(layout, name))


def _replaces_another(layout: Layout, name: str, run_id: str) -> bool:
    """Whether the report that lies there is of the same sweep with other settings (--set, an edited file)."""
    page = layout.reports / name / "report.html"
    return page.exists() and run_id not in page.read_text(encoding="utf-8")


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def _show_table(layout: Layout, name: str, console: Console, problems: Iterable[str] = ()) -> None:
    """Print the main table of a sweep, where its report lies, and what of it could not be made."""
    from rich.markup import escape
    from rich.table import Table

    from otkd.report.render import console as accuracy
    from otkd.track.reader import read_sweep

    frame = accuracy(read_sweep(layout, name))
    table = Table(*map(escape, ["", *map(str, frame.columns)]), title=escape(name))
    for method, row in frame.iterrows():
        table.add_row(escape(str(method)), *(escape(str(cell)) for cell in row))
    if table.row_count:
        console.print(table)
    console.print(f"report: {layout.reports / name / 'report.html'}", highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"[yellow]![/] the report lacks {escape(problem)}", highlight=False)


def _show_exports(files: list[Exported], console: Console) -> None:
    """Each file with its size, its speed, and how far its logits are from the network's."""
    from rich.table import Table

    table = Table("form", "file", "KiB", "ms an image", "largest difference", box=None, pad_edge=False)
    for file in files:
        size, latency = f"{file.bytes / 1024:,.0f}", f"{file.latency_ms:.2f}"
        table.add_row(file.form, str(file.path), size, latency, f"{file.gap:.0e}" if file.gap else "none")
    console.print(table)
    console.print("One image on one CPU thread; differences of logits in units of the largest.", highlight=False)
