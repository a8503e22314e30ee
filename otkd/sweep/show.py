"""What planning commands print."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from otkd.core import datasets, plugins
from otkd.core.config import StrictModel
from otkd.core.errors import OtkdError, did_you_mean
from otkd.core.layout import Layout
from otkd.sweep.plan import Plan, stage_epochs
from otkd.sweep.run import outcome


def show_warnings(plan: Plan, console: Console) -> None:
    """What is probably not meant, but may be."""
    for warning in plan.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)


def show_plan(plan: Plan, layout: Layout, console: Console) -> None:
    """The trials by method and pair, their number, and what is done."""
    show_warnings(plan, console)
    console.print(f"[bold]{plan.info.name}[/]: {escape(plan.info.question)}", highlight=False)
    for note in plan.info.notes:
        console.print(f"  {escape(note)}", highlight=False)
    table = Table("trial", "key", "state", box=None, pad_edge=False)
    for planned in plan.all:
        table.add_row(escape(planned.label.title), planned.trial.key, _state(planned.trial.key, layout))
    console.print(table)
    pending = plan.pending(layout)
    epochs = sum(trial.train.epochs + stage_epochs(trial.objective) for trial in pending)
    count, teachers = len(plan.trials), len(plan.teachers)
    console.print(
        f"{count} trials: {teachers} teacher{'s' * (teachers != 1)}, {count - teachers} students; "
        f"{count - len(pending)} done, {len(pending)} to train, {epochs} "
        "epochs in all.",
        highlight=False,
    )


def show_outcome(plan: Plan, layout: Layout, console: Console) -> int:
    """How a sweep ended. Returns the exit status: 0 when every trial has ended, 1 when some could not be trained."""
    ended = outcome(plan, layout)
    for line in ended.diverged:
        console.print(f"[yellow]diverged[/] {escape(line)}", highlight=False)
    for title in ended.undone:
        console.print(f"[red]not trained[/] {escape(title)}", highlight=False)
    if ended.undone:
        console.print("Run the same command to try these again.", highlight=False)
    return 1 if ended.undone else 0


def show_list(what: str, console: Console) -> None:
    """Print one kind of thing that a sweep file can name.

    Raises:
        OtkdError: there is no such kind.
    """
    if what not in LISTINGS:
        raise OtkdError(f"cannot list {what!r}; allowed: {', '.join(LISTINGS)}.{did_you_mean(what, LISTINGS)}")
    LISTINGS[what](console)


def _state(key: str, layout: Layout) -> str:
    folder = layout.trial(key)
    if folder.done:
        return "done"
    return "begun" if folder.checkpoint.exists() else "to do"


def _list_plugins(group: str) -> Callable[[Console], None]:
    def listing(console: Console) -> None:
        for name in plugins.names(group):
            console.print(f"[bold]{name}[/]  {escape(_summary(plugins.source(group, name)))}", highlight=False)
            table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
            for row in _settings(plugins.head(group, name).Config):
                table.add_row("", *map(escape, row))
            console.print(table)

    return listing


def _settings(config: type[StrictModel]) -> Iterator[tuple[str, str, str]]:
    """(name, default, help) of every setting."""
    for name, field in config.model_fields.items():
        if name != "name":
            default = "required" if field.default is PydanticUndefined else f"{_short(field.default)}"
            choices = f"({' | '.join(get_args(field.annotation))})" if get_origin(field.annotation) is Literal else ""
            yield name, default, " ".join((*(field.description or "").split(), choices)).strip()


def _short(value: Any) -> str:
    return str(value.name) if hasattr(value, "name") else "none" if value is None else str(value)


def _summary(path: Path) -> str:
    """First sentence of a plug-in's docstring."""
    import ast

    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z])", first, maxsplit=1)[0]


def _list_models(console: Console) -> None:
    table = Table(
        "model", "parameters", "multiply-adds", "pixels", "embedding", "taps", "weights", box=None, pad_edge=False
    )
    for name, card in sorted(plugins.cards("models").items(), key=lambda item: "/" in item[0]):
        taps = ", ".join(f"{tap} {width}" for tap, width in zip(card.taps, card.channels, strict=True))
        least, most = card.sides
        size = f"{card.side}{' only' if most else f', ≥ {least}' if least > 1 else ''}"
        madds, weights = f"{card.madds / 1e6:,.0f} M", ", ".join(card.weights)
        table.add_row(name, f"{card.params:,}", madds, size, str(card.embedding), taps, weights)
    console.print(table)
    console.print(
        "Parameters with 100 classes and 3 input channels, multiply-adds of one image of so many pixels a side; other "
        "sizes work, too, but for `only` and what is below `≥`. Taps are the names that `layer:` takes (or their "
        "places: 0 is the stem), with their channels. `timm/<name>` is a network of timm that shows its maps, where "
        "timm is installed.",
        highlight=False,
    )


def _list_data(console: Console) -> None:
    table = Table("data set", "classes", "images", "train", "test", "", box=None, pad_edge=False)
    for name in plugins.names("data"):
        card = plugins.head("data", name).CARD
        if datasets.surveyed(name):
            table.add_row(f"{name}/<name>", "", "", "", "", card.about)
            continue
        image = f"{card.channels}×{card.side}×{card.side}"
        table.add_row(name, str(card.classes), image, f"{card.train:,}", f"{card.test:,}", card.about)
    console.print(table)


def _list_sweeps(console: Console) -> None:
    from otkd.sweep import yamlfile

    table = Table("file", "question", box=None, pad_edge=False)
    for path in sorted(Path("sweeps").rglob("*.yaml")):
        try:
            tree = yamlfile.read(path)
            question = str(tree.get("question", "")) if "name" in tree else f"{len(tree['methods'])} methods for others"
        except OtkdError as error:
            question = str(error)
        table.add_row(str(path), escape(question))
    console.print(table if table.row_count else "There is no folder sweeps/ here.")


LISTINGS: dict[str, Callable[[Console], None]] = {
    "losses": _list_plugins("losses"),
    "models": _list_models,
    "data": _list_data,
    "solvers": _list_plugins("ot"),
    "sweeps": _list_sweeps,
}
