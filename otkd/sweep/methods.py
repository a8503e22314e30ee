"""The methods of a sweep: taken from a file that several sweeps share, and varied from pair to pair."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from otkd.core.errors import ConfigError, OtkdError, Problem, did_you_mean
from otkd.sweep import yamlfile
from otkd.sweep.trees import merge

FROM, ONLY, PAIRS, SKIP = "from", "only", "pairs", "skip"
WHO = ("teacher", "student")


def options_of(value: Any) -> Any:
    """`kd: 0.9` is short for `kd: {weight: 0.9}`."""
    return value if isinstance(value, Mapping) and set(value) != {"grid"} else {"weight": value}


def spelled(methods: Any) -> Any:
    """`methods:` with every term's weight spelled out, so that one can be laid over another."""
    if not isinstance(methods, Mapping):
        return methods
    return {
        name: _spelled(terms) if isinstance(terms, Mapping) and name not in (FROM, ONLY) else terms
        for name, terms in methods.items()
    }


def _spelled(terms: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for term, value in terms.items():
        if term == PAIRS and isinstance(value, list):
            made[term] = [_spelled(entry) if isinstance(entry, Mapping) else entry for entry in value]
        else:
            made[term] = value if term in (PAIRS, SKIP, *WHO) else options_of(value)
    return made


def resolved(methods: Any, sweep: Path) -> Any:
    """`methods:` with `from: file` replaced by that file's methods, all or those that `only:` names.

    What else stands there under the name of a method of that file is laid over it, and left out where `only:` leaves
    that method out; under another name it is a method of its own.

    Raises:
        ConfigError: there is no such file, it has no methods, or none of a name.
    """
    if not isinstance(methods, Mapping) or FROM not in methods:
        return spelled(methods)
    shared = _shared(methods[FROM], sweep)
    chosen = methods.get(ONLY, list(shared))
    problems = list(_unknown(chosen, shared))
    if problems:
        raise ConfigError(str(sweep), problems)
    own = {name: terms for name, terms in methods.items() if name not in (FROM, ONLY)}
    kept = {name: terms for name, terms in own.items() if name in chosen or name not in shared}
    return merge(spelled({name: shared[name] for name in chosen}), spelled(kept), depth=1)


def _shared(name: Any, sweep: Path) -> dict[str, Any]:
    try:
        if not isinstance(name, str):
            raise OtkdError(f"the name of a YAML file, relative to this one. Got {name!r}.")
        shared = yamlfile.read(sweep.parent / name).get("methods")
    except OtkdError as error:
        raise ConfigError(str(sweep), [Problem(f"methods.{FROM}", str(error))]) from None
    if not isinstance(shared, dict):
        raise ConfigError(str(sweep), [Problem(f"methods.{FROM}", f"{name} has no mapping `methods:`.")])
    if FROM in shared:
        raise ConfigError(
            str(sweep), [Problem(f"methods.{FROM}", f"{name} takes its methods from a file, too; name that one.")]
        )
    return shared


def _unknown(chosen: Any, shared: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(chosen, list) or not chosen:
        yield Problem(f"methods.{ONLY}", f"a list of one method or more. Got {chosen!r}.")
        return
    for name in (name for name in chosen if name not in shared):
        text = f"there is no method {name!r}; there is {', '.join(shared)}.{did_you_mean(name, shared)}"
        yield Problem(f"methods.{ONLY}", text)


def for_pair(terms: Mapping[str, Any], teacher: str, student: str) -> dict[str, Any] | None:
    """A method's terms for a pair of networks, with what its `pairs:` say of that pair laid over; None to skip it."""
    made = {term: value for term, value in terms.items() if term != PAIRS}
    for entry in _entries(terms):
        if (entry.get("teacher"), entry.get("student")) == (teacher, student):
            if entry.get(SKIP):
                return None
            made = merge(made, {term: value for term, value in entry.items() if term not in (SKIP, *WHO)}, 1)
    return made


def specials(terms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A method's terms for the usual pair, and for each of which something special is said."""
    pairs = dict.fromkeys((entry.get("teacher", ""), entry.get("student", "")) for entry in _entries(terms))
    for pair in (("", ""), *pairs):
        made = for_pair(terms, *pair)
        if made is not None:
            yield made


def pair_problems(method: str, terms: Mapping[str, Any], models: Container[str]) -> Iterator[Problem]:
    """What is wrong with a method's `pairs:`."""
    special = terms.get(PAIRS, [])
    where = f"methods.{method}.{PAIRS}"
    if not isinstance(special, list) or not all(isinstance(entry, Mapping) for entry in special):
        yield Problem(
            where, f"a list of {{teacher, student, and the terms as they are for that pair}}. Got {special!r}."
        )
        return
    for index, entry in enumerate(special):
        if not isinstance(entry.get(SKIP, True), bool):
            yield Problem(
                f"{where}.{index}.{SKIP}", f"true, to leave the method out for this pair. Got {entry[SKIP]!r}."
            )
        for who in WHO:
            if entry.get(who) not in models:
                known = models if isinstance(models, Mapping) else ()
                hint = did_you_mean(entry.get(who), known)
                yield Problem(f"{where}.{index}.{who}", f"a model. Got {entry.get(who)!r}.{hint}")


def _entries(terms: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    special = terms.get(PAIRS)
    return [entry for entry in special if isinstance(entry, Mapping)] if isinstance(special, list) else []
