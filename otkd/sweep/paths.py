"""Dotted paths of a sweep file: where they lead, and a value laid there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from otkd.core.errors import did_you_mean

METHODS, TRAIN = "methods", "train"
"""Where a path of `space:` may begin."""


class Place(NamedTuple):
    """Where a path of `space:` leads."""

    method: str
    """Empty for the recipe of all methods."""
    keys: tuple[str, ...]
    """From the method, or from `train`, on."""


def place(path: str, methods: Iterable[str]) -> Place:
    """Where a dotted path leads.

    Raises:
        ValueError: outside of what may be searched; says what may be.
    """
    root, _, rest = path.partition(".")
    if root == TRAIN and rest:
        if rest == "epochs":
            raise ValueError("configurations are compared at equal budget, so epochs cannot be searched.")
        return Place("", tuple(rest.split(".")))
    if root != METHODS or not rest:
        text = "trials that are compared share teacher, data and seeds: a path begins with `methods.` or `train.`."
        raise ValueError(text + did_you_mean(root, (METHODS, TRAIN)))
    names = [str(name) for name in methods]
    own = max((name for name in names if rest.startswith(f"{name}.")), key=len, default="")
    if not own:
        given = rest.split(".")[0]
        if given in names:
            raise ValueError("is a whole method; name one of its settings, e.g. methods.kd.kd.temperature.")
        raise ValueError(f"there is no method {given!r}; there is {', '.join(names)}.{did_you_mean(given, names)}")
    return Place(own, tuple(rest.removeprefix(f"{own}.").split(".")))


def unknown(keys: Sequence[str], filled: Any) -> str:
    """What is wrong with a path below `filled`, a tree with all defaults; empty where it leads to a setting."""
    for key in keys:
        if not isinstance(filled, Mapping):
            return f"there is nothing below {filled!r}, so no {key!r}."
        if key not in filled:
            return f"there is no {key!r}; there is {', '.join(map(str, filled))}.{did_you_mean(key, map(str, filled))}"
        filled = filled[key]
    return ""


def placed(tree: Any, keys: Sequence[str], value: Any, filled: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with a value where `keys` lead, as a person would write it into the file.

    Args:
        filled: the same tree with all defaults; it names the plug-in or choice that `tree` leaves to its default.
    """
    key, *below = keys
    old = dict(tree)
    if not below:
        return old | {key: value}
    inner = old.get(key)
    if not isinstance(inner, Mapping):
        name = inner if isinstance(inner, str) else filled[key].get("name")
        inner = {} if name is None else {"name": name}
    return old | {key: placed(inner, below, value, filled[key])}
