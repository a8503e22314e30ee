"""The commands. Thin: each imports its layer when it is called, so that `otkd --help` answers at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from otkd.cli.data import app as data_app
from otkd.cli.options import DataDir, Debug, Runs, console_for
from otkd.cli.report import report, show_tables, show_unwritten, show_written
from otkd.cli.streams import lasting
from otkd.core.errors import ConfigError, OtkdError, Problem
from otkd.core.layout import Layout
from otkd.sweep.stopping import end_in_order

if TYPE_CHECKING:
    from rich.console import Console

    from otkd.core.records import SweepInfo
    from otkd.report.render import Report
    from otkd.sweep.gc import Waste
    from otkd.sweep.plan import Plan
    from otkd.sweep.session import Session
    from otkd.train.export import Exported

app = typer.Typer(
    help="Which distillation loss makes the best student? A YAML file asks, one command answers with a table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_app, name="data")

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells and typer have it."""

Sweep = Annotated[Path, typer.Argument(help="The sweep file, e.g. sweeps/demo.yaml.", show_default=False)]
Profile = Annotated[
    str, typer.Option(help="`auto` (quick without a GPU), `paper` (the file as it is) or one of the file's.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=3. Repeatable.")]


def main() -> None:
    """Entry point: one clear message for what the user can mend, a traceback only with --debug."""
    end_in_order()
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

    layout, console = Layout(runs), console_for()
    made = _plan(sweep, profile, overrides, data_dir, layout)
    _expect_fitting(made)
    show_plan(made, layout, console)
    if made.studies or made.pending(layout):
        _show_missing_data(made, data_dir, layout, console)


@app.command()
def sweep(
    sweep: Sweep,
    profile: Profile = "auto",
    overrides: Set = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray. Nothing ends a trial that hangs.")
    ] = False,
    address: Annotated[
        str,
        typer.Option(help="A Ray cluster to join: HOST:PORT, or `auto` for this machine's.", envvar="RAY_ADDRESS"),
    ] = "local",
    storage: Annotated[
        str | None,
        typer.Option(help="Keep checkpoints and results at s3://… (any fsspec path), too.", envvar="OTKD_STORAGE"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed or diverged in an earlier run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print problems, and in the end where the report is.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON event per line on stdout; all else goes to stderr.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train what is not done yet, log it to MLflow, write the report. Stop it any time: the same command goes on."""
    out = lasting(sys.stdout)
    layout, console = Layout(runs), console_for(lasting(sys.stderr) if as_json else out)
    made = _plan(sweep, profile, overrides, data_dir, layout)
    if local:
        _expect_local(made, str(sweep))
    from otkd.sweep.displays import JsonLines, for_person
    from otkd.sweep.run import outcome
    from otkd.sweep.session import Options, Session
    from otkd.sweep.show import show_held, show_outcome, show_warnings

    show_warnings(made, console)
    display = JsonLines(out) if as_json else for_person(console, quiet)
    with Session(made, layout, console, display) as session:
        if retry_failed:
            session.retry_failed()
        show_held(len(session.held), console)
        replayed = session.replay()
        if session.is_left:
            session.train(Options(data_dir, local, address, device, storage))
            if session.stopped:
                raise typer.Exit(INTERRUPTED)
        elif not replayed and not outcome(made, layout).open:
            count = len(session.whole.trials)
            if not quiet:
                console.print(f"{made.info.name}: nothing to do, all {count} trials are done.", highlight=False)
            if there := _reported(layout, made.info.name):
                if not quiet:
                    show_tables(there.shown, made.info.name, console)
                show_written(there, console)
                return
        session.flush()
        is_written = _report(session, runs, quiet)
    ended = show_outcome(made, layout, console)
    raise typer.Exit(ended if is_written else 1)


@app.command()
def stop(
    runs: Runs = Path("runs"),
    wait: Annotated[bool, typer.Option(help="Wait until it has stopped.")] = True,
    debug: Debug = False,
) -> None:
    """Ask the sweep that is running in a folder to save and end; the command that runs it goes on from there later."""
    from otkd.sweep.stopping import stop_driver

    stop_driver(Layout(runs), console_for(), wait)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[SWEEP]", help="Its name; by default the one that runs, or ran last.")
    ] = None,
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    debug: Debug = False,
) -> None:
    """Say how a sweep stands: while it runs, from another terminal, and after it. Reads nothing but the runs folder."""
    import json

    from otkd.sweep.status import as_json as jsonable
    from otkd.sweep.status import show_status
    from otkd.sweep.status import status as status_of

    found = status_of(Layout(runs), name)
    if as_json:
        typer.echo(json.dumps(jsonable(found), ensure_ascii=False, allow_nan=False, indent=1))
    else:
        show_status(found, console_for())


app.command()(report)


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
    from otkd.train.export import FORMS, export, find

    console = console_for()
    if to.exists() and not to.is_dir():
        raise OtkdError(f"--to: {to} is a file; name a folder.")
    trial, file = find(Layout(runs), key, best)
    console.print(f"writing {', '.join(forms or FORMS)} to {to}, and reading each back …", highlight=False)
    made = export(trial, load_weights(file), to, tuple(forms or ()), "-best" if best else "")
    _show_exports(made, console)


@app.command()
def gc(
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    keep_superseded: Annotated[
        bool, typer.Option("--keep-superseded", help="Leave what belongs to no recorded sweep any more.")
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also weights of students that no recorded sweep names.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Remove checkpoints and other files that nobody needs any more. Lists them first, and asks; results stay."""
    from otkd.sweep import gc, lock

    layout, console = Layout(runs), console_for()
    if not layout.root.is_dir():
        raise OtkdError(f"there is no folder {runs}; --runs names another.")
    held = lock.take(layout, "gc")
    try:
        wastes = gc.find(layout, superseded=not keep_superseded, weights=weights)
        if not wastes:
            console.print(f"{runs}: there is nothing to remove.", highlight=False)
        elif _is_wanted(wastes, yes, console):
            gc.remove(wastes)
            console.print("removed.", highlight=False)
        else:
            console.print("nothing was removed.", highlight=False)
    finally:
        held.release()


@app.command(name="list")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="losses, methods, models, data, solvers, optimizers, schedules (of the learning rate), schedulers "
            "(of a search) or sweeps.",
            show_default=False,
        ),
    ],
    debug: Debug = False,
) -> None:
    """List what a sweep file can name, with every setting and its default."""
    from otkd.sweep.listings import show_list

    show_list(what, console_for())


@app.command()
def schema(
    output: Annotated[Path, typer.Option(help="Where to write it.")] = Path("docs/sweep.schema.json"),
    debug: Debug = False,
) -> None:
    """Write the JSON schema of sweep files, for editors."""
    from otkd.core.layout import write_text
    from otkd.sweep.schema import sweep_schema_text

    write_text(output, sweep_schema_text())
    console_for().print(f"{output} written.", highlight=False)


def _plan(sweep: Path, profile: str, overrides: list[str] | None, data_dir: Path | None, layout: Layout) -> Plan:
    from otkd.sweep.plan import make
    from otkd.sweep.spec import load

    return make(load(sweep, profile, overrides or ()), data_dir, layout.cache)


def _expect_local(plan: Plan, source: str) -> None:
    """Refuse what needs Ray, before anything is read or written for it."""
    problems = []
    scheduler, processes = plan.spec.search.scheduler.name, plan.spec.resources.gpus_per_trial
    if scheduler != "fifo":
        text = f"{scheduler} is Ray's; leave --local out, or take fifo. What search.stop says holds without Ray, too."
        problems.append(Problem("search.scheduler", text))
    if processes > 1:
        text = f"{processes} processes need Ray; leave --local out, or set it to 1."
        problems.append(Problem("resources.gpus_per_trial", text))
    if problems:
        raise ConfigError(source, problems)


def _report(session: Session, runs: Path, quiet: bool) -> bool:
    """Write the report, show it, and keep it with the sweep. Where it cannot be written, what was trained stands.

    Returns:
        Whether there is one.

    Raises:
        TrackingError: the store does not take it.
    """
    from otkd.report.render import write_report

    layout, info, console = session.layout, session.plan.info, session.console
    if not quiet and _replaces_another(layout, info):
        console.print(
            f"This replaces the report of {info.name} with other settings; their command brings it back.",
            highlight=False,
        )
    try:
        written = write_report(layout, info.name)
    except OtkdError as error:
        show_unwritten(error, info.name, runs, console)
        return False
    session.tracker.attach_report(written.folder, written.markdown)
    if not quiet:
        show_tables(written.shown, info.name, console)
    show_written(written, console)
    return True


def _reported(layout: Layout, name: str) -> Report | None:
    """The report that lies there, if it is what this command would write of what is on record now."""
    from otkd.report.render import there
    from otkd.track.reader import read_sweep

    return there(layout.reports / name, read_sweep(layout, name))


def _replaces_another(layout: Layout, info: SweepInfo) -> bool:
    """Whether the report that lies there is of a sweep of this name with other settings (--set, an edited file)."""
    page = layout.reports / info.name / "report.html"
    try:
        return info.key not in page.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _expect_fitting(plan: Plan) -> None:
    """Refuse files of weights that the sweep would refuse; names of weights are not looked up before it begins."""
    from tempfile import TemporaryDirectory

    from otkd.core.weights import NAMED

    files = [given for given in plan.weights if not given.digest.startswith(NAMED)]
    if files:
        from otkd.train.weights import take_in

        with TemporaryDirectory() as folder:
            take_in(Layout(Path(folder)), files, plan.spec.data.card)


def _show_missing_data(plan: Plan, data_dir: Path | None, layout: Layout, console: Console) -> None:
    """Say so where the images of a plan are not here yet."""
    from rich.markup import escape

    from otkd.core.datasets import request_for
    from otkd.data.verify import whereabouts

    data = plan.spec.data
    where = whereabouts(request_for(data, data_dir, layout.cache), data.card)
    if where.startswith(("to be", "incomplete")):
        text = f"the images of {data.name} are not here: {where}. --data-dir names a folder that has them."
        console.print(f"[yellow]![/] {escape(text)}", highlight=False)


def _is_wanted(wastes: list[Waste], yes: bool, console: Console) -> bool:
    """List what may go, and ask."""
    from rich.table import Table

    table = Table("what", "how many", "MB", box=None, pad_edge=False)
    for waste in wastes:
        table.add_row(waste.what, str(len(waste.paths)), f"{waste.bytes / 1e6:,.1f}")
    console.print(table)
    total = sum(waste.bytes for waste in wastes) / 1e6
    try:
        return yes or typer.confirm(f"Remove all of it, {total:,.1f} MB?", default=False)
    except typer.Abort:  # Ctrl-C, or there is nobody to ask
        console.print()
        raise OtkdError("nobody said yes, so nothing was removed; --yes removes without asking.") from None


def _show_exports(files: list[Exported], console: Console) -> None:
    """Each file with its size, its speed, and how far its logits are from the network's."""
    from rich.table import Table

    table = Table("form", "file", "KiB", "ms an image", "largest difference", box=None, pad_edge=False)
    for file in files:
        size, latency = f"{file.bytes / 1024:,.0f}", f"{file.latency_ms:.2f}"
        table.add_row(file.form, str(file.path), size, latency, f"{file.gap:.0e}" if file.gap else "none")
    console.print(table)
    console.print("One image on one CPU thread; differences of logits in units of the largest.", highlight=False)
