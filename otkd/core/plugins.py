"""Plug-ins: one file each, found by their file name, never listed by hand.

A plug-in file has a *head*: its statements up to the group's marker (`Config`, `CARDS`, `CARD` or `TITLE`), which use
nothing but the standard library, pydantic and `otkd.core`. Planning executes heads alone, so `otkd plan` checks every
setting of every plug-in without importing torch. Training imports the whole file.

Packages outside otkd add theirs through entry points of the group `otkd.<group>`: name = module.
"""

from __future__ import annotations

import ast
import importlib
import linecache
import re
import sys
from collections import ChainMap
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BeforeValidator, SerializeAsAny, ValidationError, WithJsonSchema

from otkd.core.config import PluginConfig
from otkd.core.errors import ConfigError, OtkdError, Problem, did_you_mean


class Group(NamedTuple):
    package: str
    marker: str
    """The name whose definition makes a file a plug-in and ends its head."""
    noun: str


GROUPS = {
    "losses": Group("otkd.losses", "Config", "loss"),
    "ot": Group("otkd.ot", "Config", "solver"),
    "models": Group("otkd.models", "CARDS", "model"),
    "data": Group("otkd.data", "CARD", "data set"),
    "tables": Group("otkd.report.tables", "TITLE", "table"),
    "plots": Group("otkd.report.plots", "TITLE", "figure"),
}

SCHEMA_MARK = "otkd-plugin"
"""Stands in the JSON schema of a `choice` field and names its group."""

HEAD_IMPORTS = {*sys.stdlib_module_names, "pydantic"}


@cache
def sources(group: str) -> dict[str, Path]:
    """Plug-in name → file of every plug-in of `group`, in alphabetical order. Imports none of them."""
    package, marker, _ = GROUPS[group]
    root = Path(__file__).parents[1].joinpath(*package.split(".")[1:])
    marked = re.compile(rf"^(class {marker}\b|{marker}\s*[:=])", re.MULTILINE)
    found = {path.stem: path for path in root.glob("*.py") if marked.search(path.read_text(encoding="utf-8"))}
    for entry in entry_points(group=f"otkd.{group}"):
        spec = find_spec(entry.value)
        if spec is None or spec.origin is None:
            raise OtkdError(f"entry point otkd.{group}: {entry.name} names {entry.value}, which cannot be found")
        found[entry.name] = Path(spec.origin)
    return dict(sorted(found.items()))


def names(group: str) -> list[str]:
    """Names of the plug-ins of `group`."""
    return list(sources(group))


def source(group: str, name: str) -> Path:
    """The file of plug-in `name`; `OtkdError` with the nearest match when there is none."""
    found = sources(group)
    if name not in found:
        raise OtkdError(unknown(GROUPS[group].noun, name, list(found)))
    return found[name]


def unknown(noun: str, name: object, allowed: list[str]) -> str:
    """The message for a name that is not among `allowed`."""
    there = [other for other in allowed if "/" not in other]
    more = "" if len(there) == len(allowed) else f" and {len(allowed) - len(there)} with a prefix (`otkd list {noun}s`)"
    return f"there is no {noun} {name!r}; there is {', '.join(there)}{more}.{did_you_mean(name, allowed)}"


@cache
def head(group: str, name: str) -> ModuleType:
    """The head of a plug-in as a module: its `Config`, `CARDS` or `CARD`, without torch."""
    path = source(group, name)
    tree = _parse(path)
    end = _marker_index(tree, GROUPS[group].marker)
    assert end is not None
    tree.body = [node for node in tree.body[: end + 1] if _belongs_to_head(node)]
    module = ModuleType(f"otkd_heads.{group}.{name}")
    # pydantic looks a field's help text up by file name, so the head needs a name that the whole file does not have
    module.__file__ = f"<head of {path}>"
    text = path.read_text(encoding="utf-8")
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, module.__file__, "exec"), module.__dict__)  # our own plug-in files, as an import would
    except Exception as error:
        lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == module.__file__]
        raise OtkdError(
            f"{path}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}. Planning executes what "
            f"stands up to `{GROUPS[group].marker}`, with the standard library, pydantic and otkd.core alone; what "
            "needs more belongs below"
        ) from error
    return module


@cache
def load(group: str, name: str) -> ModuleType:
    """The whole plug-in, imported."""
    path = source(group, name)
    for entry in entry_points(group=f"otkd.{group}"):
        if entry.name == name:
            return importlib.import_module(entry.value)
    return importlib.import_module(f"{GROUPS[group].package}.{path.stem}")


@cache
def cards(group: str = "models") -> Mapping[str, Any]:
    """Every model by name with its card; families may know more than they list."""
    return ChainMap(*(head(group, family).CARDS for family in reversed(names(group))))  # listed from the last


@cache
def family_of(model: str) -> str:
    """The plug-in (architecture family) that defines `model`."""
    for family in names("models"):
        if model in head("models", family).CARDS:
            return family
    raise OtkdError(unknown("model", model, list(cards("models"))))


def configure(group: str, name: str, options: Mapping[str, Any], path: str = "") -> Any:
    """The checked `Config` of plug-in `name` with every default filled in.

    Raises:
        ConfigError: with all problems, their paths under `path`.
    """
    if name not in sources(group):
        raise ConfigError(group, [Problem(path, unknown(GROUPS[group].noun, name, names(group)))])
    config = head(group, name).Config
    try:
        return config.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(group, problems_of(error, config, path)) from None


LIST, MAPPING = "a list, as in [a, b]", "a mapping, as in {key: value}"
KINDS = {
    "tuple_type": LIST,
    "list_type": LIST,
    "too_short": "a list that is not empty",
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
}
"""What pydantic's errors of type want, in words of a sweep file."""


def problems_of(error: ValidationError, model: Any, path: str = "") -> list[Problem]:
    """pydantic's errors as ours: path, what came, what is allowed, nearest match."""
    problems: list[Problem] = []
    for item in _told(error):
        where = ".".join([*([path] if path else []), *_follow(model, item["loc"])[1]])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Nested):
            problems += [Problem(".".join(filter(None, [where, p.path])), p.message) for p in cause.problems]
        elif item["type"] == "extra_forbidden":
            allowed = _fields_at(model, item["loc"][:-1])
            text = f"unknown key; allowed: {', '.join(allowed)}." if allowed else "unknown key."
            problems.append(Problem(where, text + did_you_mean(item["loc"][-1], allowed)))
        elif item["type"] == "missing":
            problems.append(Problem(where, "is missing."))
        elif item["type"] == "union_tag_not_found":
            problems.append(Problem(f"{where}.name", f"is missing. Got {item['input']!r}."))
        elif item["type"] == "union_tag_invalid":
            tag, allowed = item["ctx"]["tag"], item["ctx"]["expected_tags"].replace("'", "")
            hint = did_you_mean(tag, allowed.split(", "))
            problems.append(Problem(f"{where}.name", f"there is no {tag!r}; there is {allowed}.{hint}"))
        elif item["type"] in KINDS:
            kind, allowed = KINDS[item["type"]], _fields_at(model, item["loc"]) if "model" in item["type"] else []
            keys = f", with {', '.join(allowed)}" if allowed else ""
            problems.append(Problem(where, f"has to be {kind}{keys}. Got {item['input']!r}."))
        else:
            problems.append(Problem(where, f"{_sentence(item['msg'])} Got {item['input']!r}."))
    return problems


def _told(error: ValidationError) -> list[Any]:
    """pydantic's errors, without those that only follow from others: a list is too short without its wrong items."""
    items = error.errors(include_url=False)
    inner = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    return [item for item in items if not (item["type"] == "too_short" and item["loc"] in inner)]


class Nested(ValueError):
    """Carries a nested plug-in's problems through pydantic."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def choice(group: str) -> Any:
    """The field type of a nested plug-in: `solver: exact` or `solver: {name: sinkhorn, epsilon: 0.05}`."""

    def read(value: Any) -> Any:
        if isinstance(value, PluginConfig):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            noun = GROUPS[group].noun
            raise ValueError(f"a {noun} is a name or {{name: …, options}}; there is {', '.join(names(group))}.")
        try:
            return configure(group, value["name"], value)
        except ConfigError as error:
            raise Nested(error.problems) from None

    return Annotated[SerializeAsAny[PluginConfig], BeforeValidator(read), WithJsonSchema({SCHEMA_MARK: group})]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _marker_index(tree: ast.Module, marker: str) -> int | None:
    for index, node in enumerate(tree.body):
        if isinstance(node, ast.ClassDef) and node.name == marker:
            return index
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(target, ast.Name) and target.id == marker for target in targets):
            return index
    return None


def _belongs_to_head(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in HEAD_IMPORTS for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return module.split(".")[0] in HEAD_IMPORTS or module.startswith("otkd.core")
    return not isinstance(node, ast.If)


def _follow(model: Any, loc: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """What `loc` leads to, and the path that a person has written, without the names of a union's members."""
    path: list[str] = []
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        before, model = model, _member(model, part) if field is None else _models_in(field.annotation, field.annotation)
        if field is not None or model is before:
            path.append(str(part))
    return model, path


def _fields_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model that `loc` leads to; empty where it leads to none."""
    return list(getattr(_follow(model, loc)[0], "model_fields", {}))


def _member(union: Any, tag: Any) -> Any:
    """The member of a union that has this name, as pydantic has it in `loc`; the same where `tag` is none's."""
    for member in get_args(union):
        name = getattr(member, "model_fields", {}).get("name")
        if name is not None and tag in get_args(name.annotation):
            return member
    return union


def _models_in(annotation: Any, default: Any) -> Any:
    args = [arg for arg in getattr(annotation, "__args__", ()) if hasattr(arg, "model_fields")]
    return args[0] if len(args) == 1 else default


def _sentence(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message if message.endswith((".", "?", "!")) else message + "."
