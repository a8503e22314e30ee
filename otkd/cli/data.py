"""`otkd data …`: what there is of a data set, whether it is whole, and what training makes of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from otkd.cli.options import DataDir, Debug, Runs, console_for
from otkd.core.errors import ConfigError, OtkdError, StorageError
from otkd.core.layout import Layout

if TYPE_CHECKING:
    from rich.console import Console

    from otkd.core.trial import Data
    from otkd.data.looks import Progress
    from otkd.data.verify import Findings

app = typer.Typer(help="List, verify, prepare and show data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The data set (`otkd data list`).", show_default=False)]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting under `data:`: --set options.extra=true. Repeatable.")
]


@app.command(name="list")
def list_(runs: Runs = Path("runs"), data_dir: DataDir = None, debug: Debug = False) -> None:
    """List the data sets, and where the images of each are."""
    from rich.table import Table

    from otkd.core import datasets, plugins
    from otkd.data.verify import whereabouts

    table = Table("data set", "classes", "image", "train", "test", "images are", "", box=None, pad_edge=False)
    for name in plugins.names("data"):
        if datasets.surveyed(name):
            table.add_row(f"{name}/<name>", "", "", "", "", "", plugins.head("data", name).CARD.about)
            continue
        card = datasets.card(name)
        request = datasets.Request(name, datasets.configure(name, {}), data_dir, Layout(runs).cache)
        image = f"{card.channels}×{card.side}×{card.side}"
        counts = (f"{card.train:,}", f"{card.test:,}")
        table.add_row(name, str(card.classes), image, *counts, whereabouts(request, card), card.about)
    console_for().print(table)


@app.command()
def verify(
    name: Name,
    overrides: Set = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode; by default one a core.", min=0)] = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Read a data set from its source, decode every image, and hold it against what it should be."""
    from otkd.data.verify import verify

    console, cache_dir = console_for(), Layout(runs).cache
    data = _data(name, overrides, data_dir, cache_dir)
    with _progress(console) as progress:
        found = verify(
            data,
            data_dir,
            cache_dir,
            workers=os.cpu_count() or 1 if workers is None else workers,
            progress=progress,
        )
    _show_findings(found, console)
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def prepare(
    name: Name, overrides: Set = None, runs: Runs = Path("runs"), data_dir: DataDir = None, debug: Debug = False
) -> None:
    """Decode a data set into the cache, or index it where it is streamed, so that no sweep has to wait for it."""
    from otkd.core.datasets import request_for
    from otkd.data import cache

    cache_dir = Layout(runs).cache
    before, start = _kept(cache_dir, name), time.perf_counter()
    data = _data(name, overrides, data_dir, cache_dir)
    card, request = data.card, request_for(data, data_dir, cache_dir)
    if card.streamed:
        cache.index(request, card)
    else:
        cache.load(request, card)
    after, seconds = _kept(cache_dir, name), time.perf_counter() - start
    if not after or (not card.streamed and cache.outdated(request)):
        raise StorageError(f"{name}: its images can be read, but {cache_dir} cannot be written. Name another --runs.")
    state = "is up to date" if after == before else "is ready"
    counts = f"{card.train:,} training and {card.test:,} test images of {card.classes:,} classes"
    console = console_for()
    console.print(f"{name} {state}: {counts}, in {seconds:.1f} s", highlight=False)
    for folder in sorted({file.parent for file in after}):
        size = sum(size for file, (size, _) in after.items() if file.parent == folder)
        console.print(f"{folder}, {_amount(size)}", highlight=False, soft_wrap=True)


@app.command()
def show(
    name: Name,
    augment: Annotated[str | None, typer.Option(help="As in a sweep file: '{pad: 4, flip: true}'.")] = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("sheet.png"),
    images: Annotated[int, typer.Option(help="Images, of different classes.", min=2)] = 8,
    versions: Annotated[int, typer.Option(help="Augmented versions of each.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Seed of what is random.", min=0)] = 0,
    overrides: Set = None,
    runs: Runs = Path("runs"),
    data_dir: DataDir = None,
    debug: Debug = False,
) -> None:
    """Draw training images with their labels: as they are, and as training batches hold them."""
    from otkd.core.layout import atomic
    from otkd.data.pipeline import prepare
    from otkd.data.sheet import contact_sheet

    if out.is_dir():
        raise OtkdError(f"--out {out} is a folder; name a file: --out {out / 'sheet.png'}")
    layout = Layout(runs)
    data = _data(name, overrides, data_dir, layout.cache, augment)
    splits = prepare(data, data_dir=data_dir, cache_dir=layout.cache)
    sheet = contact_sheet(data, splits, images=images, versions=versions, seed=seed)
    with atomic(out) as temporary:
        sheet.save(temporary, format="PNG")
    console = console_for()
    console.print(f"{out} written: {sheet.width} × {sheet.height} pixels", highlight=False, soft_wrap=True)
    console.print(f"augment: {_flow(data)}", highlight=False, markup=False, soft_wrap=True)


def _data(
    name: str, overrides: list[str] | None, data_dir: Path | None, cache_dir: Path, augment: str | None = None
) -> Data:
    """What a sweep file with these settings under `data:` would train on; a set of the user's own is looked at.

    Raises:
        ConfigError: a setting is unknown or wrong.
        OtkdError: there is no such data set.
    """
    from pydantic import ValidationError

    from otkd.core import datasets, plugins
    from otkd.core.trial import Data
    from otkd.sweep import yamlfile
    from otkd.sweep.spec import parse_override
    from otkd.sweep.trees import merge

    tree: dict[str, Any] = {"name": name}
    if augment is not None:
        tree["augment"] = yamlfile.parse(augment, "--augment")
    for text in overrides or ():
        tree = merge(tree, parse_override(text))
    if not datasets.known(tree["name"]):
        raise OtkdError(datasets.unknown(tree["name"]))
    try:
        data = Data.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("data", plugins.problems_of(error, Data)) from None
    return datasets.survey(data, data_dir, cache_dir)


def _flow(data: Data) -> str:
    """The augmentation on one line, as a sweep file takes it, without what is off."""
    import yaml

    used = {} if data.augment is None else data.augment.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(used, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _kept(cache_dir: Path, name: str) -> dict[Path, tuple[int, int]]:
    """Every file that is kept of a data set, with any options → its size and time of change."""
    from otkd.data.cache import MARK, folder_name

    own = re.compile(f"{re.escape(folder_name(name))}({re.escape(MARK)}[0-9a-f]{{8}})?")
    folders = [folder for folder in cache_dir.glob("*") if own.fullmatch(folder.name)]
    files = [file for folder in folders for file in folder.glob("[!.]*") if file.is_file()]
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _amount(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar for each thing that takes time, with its speed, on terminals only."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed and task.total else "")

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        ids: dict[str, Any] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            if what not in ids:
                ids[what] = bars.add_task(what, total=total)
            bars.update(ids[what], completed=done)

        yield tell


def _show_findings(found: Findings, console: Console) -> None:
    """Files, counts and what the images look like; then what is wrong; the verdict last."""
    from rich.markup import escape
    from rich.table import Table

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    _show_files(found, console)
    if found.counts:
        table = Table("split", "images", "expected", "classes", "a class has", box=None, pad_edge=False)
        for count in found.counts:
            span = f"{count.fewest:,} … {count.most:,}" if count.fewest < count.most else f"{count.most:,}"
            table.add_row(
                count.split, f"{count.images:,}", f"{count.expected:,}", f"{count.classes:,} of {found.classes:,}", span
            )
        console.print(table)
    if found.sizes:
        modes = ", ".join(f"{mode} {count:,}" for mode, count in found.modes)
        smallest, largest = (f"{width} × {height}" for width, height in found.sizes)
        line(f"decoded: {modes}; {smallest if smallest == largest else f'{smallest} to {largest}'} pixels")
    for text in found.warnings:
        line(f"[yellow]![/] {escape(text)}")
    for text in (*found.problems, *found.unreadable):
        line(f"[red]✗[/] {escape(text)}")
    if found.unreadable:
        line(f"To train without them: data: {{name: {escape(found.name)}, skip: {len(found.unreadable)}}}")
    images = sum(count.images for count in found.counts)
    line(f"in {found.seconds:.1f} s" + (f", {images / found.seconds:,.0f} images/s" if images else ""))
    line(f"[{'green' if found.ok else 'red'}]{escape(found.verdict)}[/]")


def _show_files(found: Findings, console: Console) -> None:
    from rich.table import Table

    size = sum(file.bytes for file in found.files)
    if not all(file.sha256 for file in found.files):
        console.print(f"{len(found.files):,} source files, {_amount(size)}", highlight=False)
    elif found.files:
        table = Table("source file", "size", "SHA-256", box=None, pad_edge=False)
        for file in found.files:
            table.add_row(file.path.name, _amount(file.bytes), file.sha256)
        console.print(table)
