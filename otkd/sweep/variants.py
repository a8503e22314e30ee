"""Methods as the objectives that they stand for: for a pair, at each point of their grids, with every default."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from otkd.core import plugins
from otkd.core.cards import ModelCard
from otkd.core.errors import ConfigError, OtkdError, Problem
from otkd.core.trial import Data
from otkd.sweep.methods import for_pair, options_of
from otkd.sweep.spec import Pair


class Variant(NamedTuple):
    """One point of a method's grid."""

    method: str
    axes: dict[str, Any]
    objective: dict[str, dict[str, Any]]


def of_pair(pair: Pair, methods: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The methods' terms as they are for a pair; without those that skip it."""
    made = ((method, for_pair(terms, pair.teacher.name, pair.student.name)) for method, terms in methods.items())
    return {method: terms for method, terms in made if terms is not None}


def expand(methods: dict[str, dict[str, Any]], problems: list[Problem]) -> list[Variant]:
    """Every method at every point of its grid, with all defaults filled in."""
    variants = []
    for method, terms in methods.items():
        if not terms:
            problems.append(Problem(f"methods.{method}", "has no terms; e.g. {ce: 1, kd: {weight: 0.9}}."))
        problems += _axis_problems(terms, f"methods.{method}")
        variants += [variant(method, terms, point, problems) for point in points(terms)]
    return variants


def variant(method: str, terms: Mapping[str, Any], point: Mapping[str, Any], problems: list[Problem]) -> Variant:
    """A method at one point of its grid; what is wrong with it goes to `problems`."""
    objective = {}
    for term, value in terms.items():
        options = _at(options_of(value), term, point)
        try:
            config = plugins.configure("losses", str(term), options, f"methods.{method}.{term}")
            objective[term] = config.model_dump(mode="json")
        except ConfigError as error:
            problems += error.problems
    return Variant(method, dict(point), objective)


def points(terms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes under a method: dotted path → value."""
    found = axes(terms)
    for values in itertools.product(*found.values()):
        yield dict(zip(found, values, strict=True))


def axes(terms: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The axes under a method: dotted path → values."""
    return {path: values for term, value in terms.items() for path, values in _lists(options_of(value), term)}


def _axis_problems(value: Any, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        return
    values = value.get("grid")
    if set(value) != {"grid"}:
        for key, below in value.items():
            yield from _axis_problems(below, f"{path}.{key}")
    elif not isinstance(values, list) or not values:
        yield Problem(f"{path}.grid", f"an axis is a list of one value or more. Got {values!r}.")
    elif any(item in values[:index] for index, item in enumerate(values)):
        yield Problem(f"{path}.grid", f"a value stands twice. Got {values!r}.")


def _lists(value: Any, path: str) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(value, Mapping):
        if set(value) == {"grid"} and isinstance(value["grid"], list):
            yield path, value["grid"]
        else:
            for key, below in value.items():
                yield from _lists(below, f"{path}.{key}")


def _at(value: Any, path: str, point: Mapping[str, Any]) -> Any:
    """`value` with each axis replaced by its value at one point of the grid."""
    if path in point:
        return point[path]
    if isinstance(value, Mapping):
        return {key: _at(below, f"{path}.{key}", point) for key, below in value.items()}
    return value


def impossible(variant: Variant, pair: Pair) -> Iterator[Problem]:
    """What a term asks for and a pair cannot give; of a teacher that is not known the student alone is asked."""
    card_s, card_t = plugins.cards("models")[pair.student.name], _card(pair.teacher.name)
    configs = {
        term: plugins.head("losses", term).Config.model_validate(options) for term, options in variant.objective.items()
    }
    if configs and not any(config.in_training for config in configs.values()):
        yield Problem(f"methods.{variant.method}", "no term takes part in the main stage; add one, e.g. {ce: 1}.")
    for term, config in configs.items():
        for problem in config.check(card_s, card_t):
            where = f"methods.{variant.method}.{term}.{problem.path}".rstrip(".")
            yield Problem(where, f"({pair.student.name} ← {pair.teacher.name}) {problem.message}")


def _card(name: str) -> ModelCard | None:
    try:
        return plugins.cards("models").get(name)
    except OtkdError:  # a family that could be there and is not
        return None


def unmixable(variant: Variant, data: Data | None) -> Iterator[Problem]:
    """Terms that are not defined for images of two labels."""
    if data is None or data.augment is None or not data.augment.mixes:
        return
    for term, options in variant.objective.items():
        if plugins.head("losses", term).Config.model_validate(options).one_label:
            text = "is defined for images of one label; leave out data.augment.mixup and cutmix, or this term."
            yield Problem(f"methods.{variant.method}.{term}", text)
