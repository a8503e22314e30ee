"""The methods of a sweep: taken from a file that several sweeps share, and varied from pair to pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from otkd.core.errors import ConfigError, OtkdError, Problem, did_you_mean
from otkd.sweep import yamlfile
from otkd.sweep.trees import merge

FROM, ONLY, PAIRS = "from", "only", "pairs"


def resolved(methods: Any, sweep: Path) -> Any:
    """`methods:` with `from: file` replaced by that file's methods, all or those that `only:` names.

    What else stands there is laid over the file's method of that name, or is a method of its own.

    Raises:
        ConfigError: there is no such file, it has no methods, or none of a name.
    """
    if not isinstance(methods, Mapping) or FROM not in methods:
        return methods
    shared = _shared(methods[FROM], sweep)
    chosen = methods.get(ONLY, list(shared))
    problems = list(_unknown(chosen, shared))
    if problems:
        raise ConfigError(str(sweep), problems)
    own = {name: terms for name, terms in methods.items() if name not in (FROM, ONLY)}
    return merge({name: shared[name] for name in chosen}, own, depth=1)


def _shared(name: Any, sweep: Path) -> dict[str, Any]:
    try:
        if not isinstance(name, str):
            raise OtkdError(f"the name of a YAML file, relative to this one. Got {name!r}.")
        shared = yamlfile.read(sweep.parent / name).get("methods")
    except OtkdError as error:
        raise ConfigError(str(sweep), [Problem(f"methods.{FROM}", str(error))]) from None
    if not isinstance(shared, dict):
        raise ConfigError(str(sweep), [Problem(f"methods.{FROM}", f"{name} has no mapping `methods:`.")])
    return shared


def _unknown(chosen: Any, shared: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(chosen, list) or not chosen:
        yield Problem(f"methods.{ONLY}", f"a list of one method or more. Got {chosen!r}.")
        return
    for name in (name for name in chosen if name not in shared):
        text = f"there is no method {name!r}; there is {', '.join(shared)}.{did_you_mean(name, shared)}"
        yield Problem(f"methods.{ONLY}", text)


def common(terms: Mapping[str, Any]) -> dict[str, Any]:
    """A method's terms for pairs of which nothing special is said."""
    return {term: value for term, value in terms.items() if term != PAIRS}


def for_pair(terms: Mapping[str, Any], teacher: str, student: str) -> dict[str, Any]:
    """A method's terms for a pair of networks, with what its `pairs:` say of that pair laid over."""
    made = common(terms)
    special = terms.get(PAIRS)
    for entry in special if isinstance(special, list) else ():
        if isinstance(entry, Mapping) and (entry.get("teacher"), entry.get("student")) == (teacher, student):
            made = merge(made, {term: value for term, value in entry.items() if term not in ("teacher", "student")}, 1)
    return made


def pair_problems(method: str, terms: Mapping[str, Any], models: list[str]) -> Iterator[Problem]:
    """What is wrong with a method's `pairs:`."""
    special = terms.get(PAIRS, [])
    where = f"methods.{method}.{PAIRS}"
    if not isinstance(special, list) or not all(isinstance(entry, Mapping) for entry in special):
        yield Problem(
            where, f"a list of {{teacher, student, and the terms as they are for that pair}}. Got {special!r}."
        )
        return
    for index, entry in enumerate(special):
        for who in ("teacher", "student"):
            name = entry.get(who)
            if name not in models:
                yield Problem(f"{where}.{index}.{who}", f"a model. Got {name!r}.{did_you_mean(name, models)}")
