"""Configurations of a search: a sweep's methods and recipe with other values, and what is wrong with any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from otkd.core import plugins
from otkd.core.errors import ConfigError, Problem
from otkd.core.trial import Data, Train, digest
from otkd.sweep import paths, search
from otkd.sweep.ranges import Choice
from otkd.sweep.search import Dimension, Search
from otkd.sweep.spec import Pair, Recipe
from otkd.sweep.variants import Variant, axes, impossible, of_pair, points, unmixable, variant

Variants = Mapping[Pair, list[Variant]]


class Base(NamedTuple):
    """What a configuration's values are laid over: the sweep as its file has it."""

    methods: Mapping[str, dict[str, Any]]
    train: Recipe
    data: Data


class Configured(NamedTuple):
    """One configuration."""

    train: Train
    variant: Variant
    """Its axes are the values, by their paths within the method, or from `train.` on."""


def configured(base: Base, pair: Pair, method: str, values: Mapping[str, Any]) -> Configured:
    """A method and the recipe for a pair, as if `values` (dotted path → value) stood in the file.

    Raises:
        ConfigError: with everything that is wrong with them, also for this pair.
    """
    terms = of_pair(pair, {method: base.methods[method]})[method]
    filled = variant(method, terms, next(points(terms)), []).objective
    train, whole = base.train.model_dump(mode="json", exclude_unset=True), base.train.model_dump(mode="json")
    shown = {}
    for path, value in values.items():
        own, keys = paths.place(path, base.methods)
        shown[".".join(keys) if own else path] = value
        if own:
            terms = paths.placed(terms, keys, value, filled)
        else:
            train = paths.placed(train, keys, value, whole)
    problems: list[Problem] = []
    made = variant(method, terms, {}, problems)._replace(axes=shown)
    recipe = _recipe(train, problems)
    problems += [] if problems else [*impossible(made, pair), *unmixable(made, base.data)]
    if problems or recipe is None:
        raise ConfigError(f"methods.{method}", problems)
    return Configured(recipe, made)


def dimensions(found: Search, base: Base, pair: Pair, method: str) -> tuple[Dimension, ...]:
    """What is searched for a method and a pair: the axes of its grid, or what `space:` says of it and the recipe."""
    terms = of_pair(pair, {method: base.methods[method]})[method]
    grid = [Dimension(f"methods.{method}.{path}", Choice(values=tuple(values))) for path, values in axes(terms).items()]
    drawn = [
        Dimension(*item) for item in found.space.items() if paths.place(item[0], base.methods).method in ("", method)
    ]
    return (*grid, *drawn)


def problems(found: Search, base: Base, variants: Variants, processes: int) -> Iterator[Problem]:
    """What is wrong with a search.

    Args:
        variants: of each sound pair, as its methods stand in the file.
        processes: that share a trial.
    """
    if found.plain:
        return
    yield from search.problems(found, base.data.val, base.train.epochs, processes)
    yield from _twins(found, base, variants)
    if found.kind != "grid":
        yield from _axes_left(base)
        for path, range_ in found.space.items():
            wrong = list(_path_problems(path, base, variants))
            yield from wrong or _value_problems(Dimension(path, range_), base, variants)


def _recipe(train: Mapping[str, Any], problems: list[Problem]) -> Recipe | None:
    try:
        return Recipe.model_validate(train)
    except ValidationError as error:
        problems += plugins.problems_of(error, Recipe, "train")
        return None


def _axes_left(base: Base) -> Iterator[Problem]:
    """An axis of a grid among what is drawn would be tried whole for each draw."""
    for method, terms in base.methods.items():
        for path in axes(terms):
            text = "an axis needs search.kind: grid; give it to search.space, as {choice: [...]}."
            yield Problem(f"methods.{method}.{path}", text)


def _path_problems(path: str, base: Base, variants: Variants) -> Iterator[Problem]:
    """Whether a path of `space:` leads to a setting, for every pair."""
    try:
        own, keys = paths.place(path, base.methods)
    except ValueError as error:
        yield Problem(f"search.space.{path}", str(error))
        return
    objectives = [made.objective for made in _all(variants) if made.method == own]
    broken = own and keys[0] in base.methods[own]  # a term that is not sound has its own problem already
    for filled in objectives if own else [base.train.model_dump(mode="json")]:
        text = "" if broken and keys[0] not in filled else paths.unknown(keys, filled)
        if text:
            yield Problem(f"search.space.{path}", text)


def _value_problems(dimension: Dimension, base: Base, variants: Variants) -> Iterator[Problem]:
    """What would be wrong, at the ends of an interval or at a choice, with methods that are sound by themselves."""
    own = paths.place(dimension.path, base.methods).method
    for pair, found in variants.items():
        for method in dict.fromkeys(made.method for made in found if own in ("", made.method)):
            for value in () if _wrong(base, pair, method, {}) else dimension.range.ends:
                for problem in _wrong(base, pair, method, {dimension.path: value}):
                    yield Problem(f"search.space.{dimension.path}", f"at {value!r}: {problem}")


def _wrong(base: Base, pair: Pair, method: str, values: Mapping[str, Any]) -> tuple[Problem, ...]:
    try:
        configured(base, pair, method, values)
    except ConfigError as error:
        return error.problems
    return ()


def _twins(found: Search, base: Base, variants: Variants) -> Iterator[Problem]:
    """Two methods that would train the very same trials."""
    for own in variants.values():
        first: dict[str, str] = {}
        for method in dict.fromkeys(made.method for made in own):
            objectives = [made.objective for made in own if made.method == method]
            prefix = f"{paths.METHODS}.{method}."
            space = [
                (path.removeprefix(prefix), range_) for path, range_ in found.space.items() if path.startswith(prefix)
            ]
            twin = first.setdefault(digest([objectives, repr(space)]), method)
            if twin != method:
                yield Problem(f"methods.{method}", f"makes the same study as {twin}; leave one of both out.")


def _all(variants: Variants) -> Iterator[Variant]:
    return (made for found in variants.values() for made in found)
