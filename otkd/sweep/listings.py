"""What `otkd list` prints: everything that a sweep file can name, with its settings. Imports neither torch nor ray."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from otkd.core import datasets, plugins
from otkd.core.config import StrictModel
from otkd.core.errors import OtkdError, did_you_mean
from otkd.core.trial import Train
from otkd.sweep import yamlfile
from otkd.sweep.search import Search

UNLISTED = ("name", "found")
"""Settings that the plug-in's name gives, or planning."""


def show_list(what: str, console: Console) -> None:
    """Print one kind of thing that a sweep file can name.

    Raises:
        OtkdError: there is no such kind.
    """
    if what not in LISTINGS:
        raise OtkdError(f"cannot list {what!r}; allowed: {', '.join(LISTINGS)}.{did_you_mean(what, LISTINGS)}")
    LISTINGS[what](console)


def _list_plugins(group: str) -> Callable[[Console], None]:
    def listing(console: Console) -> None:
        for name in plugins.names(group):
            text = ast.get_docstring(ast.parse(plugins.source(group, name).read_text(encoding="utf-8")))
            _show_settings(name, text, plugins.head(group, name).Config, console)

    return listing


def _list_choices(model: type[StrictModel], field: str) -> Callable[[Console], None]:
    """What a field takes that is one of several kinds, told apart by their name."""

    def listing(console: Console) -> None:
        for kind in get_args(model.model_fields[field].annotation):
            (name,) = get_args(kind.model_fields["name"].annotation)
            _show_settings(name, kind.__doc__, kind, console)

    return listing


def _show_settings(name: str, text: str | None, config: type[StrictModel], console: Console) -> None:
    console.print(f"[bold]{name}[/]  {escape(_first_sentence(text or ''))}", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for row in _settings(config):
        table.add_row("", *map(escape, row))
    console.print(table)


def _settings(config: type[StrictModel]) -> Iterator[tuple[str, str, str]]:
    """(name, default, help) of every setting."""
    for name, field in config.model_fields.items():
        if name not in UNLISTED:
            default = "required" if field.default is PydanticUndefined else f"{_short(field.default)}"
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            listed = f"({' | '.join(map(str, choices))})" if choices else ""
            yield name, default, " ".join((*(field.description or "").split(), listed)).strip()


def _short(value: Any) -> str:
    return str(value.name) if hasattr(value, "name") else "none" if value is None else str(value)


def _first_sentence(text: str) -> str:
    first = " ".join(text.split("\n\n")[0].split())
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
    for name in plugins.names("data"):
        options = datasets.options_of(name)
        if any(_settings(options)):
            _show_settings(f"{name}: options", options.__doc__, options, console)


def _list_methods(console: Console) -> None:
    """The methods of files that have nothing else: those for other sweeps to take from."""
    shared = [(path, tree["methods"]) for path, tree in _sweep_files() if "methods" in tree and "name" not in tree]
    for path, methods in shared:
        console.print(f"methods: {{from: {path.name}, only: […]}} takes these of {path}:", highlight=False)
        table = Table("method", "objective", box=None, pad_edge=False)
        for name, terms in methods.items():
            flow = yaml.safe_dump(terms, default_flow_style=True, sort_keys=False, width=10_000)
            table.add_row(escape(name), escape(flow.strip()))
        console.print(table)
    if not shared:
        console.print("There is no file of methods in sweeps/ here.")


def _list_sweeps(console: Console) -> None:
    table = Table("file", "question", box=None, pad_edge=False)
    for path, tree in _sweep_files():
        question = tree.get("question", "") if "name" in tree else f"{len(tree.get('methods', ()))} methods for others"
        table.add_row(str(path), escape(str(question)))
    console.print(table if table.row_count else "There is no folder sweeps/ here.")


def _sweep_files() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of the folder `sweeps/`; one that cannot be read has its error as question."""
    for path in sorted(Path("sweeps").rglob("*.yaml")):
        try:
            yield path, yamlfile.read(path)
        except OtkdError as error:
            yield path, {"name": path.stem, "question": str(error)}


LISTINGS: dict[str, Callable[[Console], None]] = {
    "losses": _list_plugins("losses"),
    "methods": _list_methods,
    "models": _list_models,
    "data": _list_data,
    "solvers": _list_plugins("ot"),
    "optimizers": _list_choices(Train, "optimizer"),
    "schedules": _list_choices(Train, "schedule"),
    "schedulers": _list_choices(Search, "scheduler"),
    "sweeps": _list_sweeps,
}
