"""From a checked sweep to its trials, in stages: teachers, then students. Imports neither torch nor ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from otkd.core import plugins
from otkd.core.cards import DataCard, ModelCard
from otkd.core.errors import ConfigError, Problem
from otkd.core.layout import Layout
from otkd.core.records import Label, SweepInfo
from otkd.core.trial import Data, Model, Train, Trial, digest
from otkd.sweep.spec import Loaded, Pair, SweepSpec, merge


class Planned(NamedTuple):
    """A trial and how the sweep presents it."""

    trial: Trial
    label: Label


class Plan(NamedTuple):
    """Everything that a sweep will run."""

    info: SweepInfo
    spec: SweepSpec
    teachers: tuple[Planned, ...]
    students: tuple[Planned, ...]
    warnings: tuple[str, ...]

    @property
    def all(self) -> tuple[Planned, ...]:
        """Teachers first. Axes of an ablation meet in the default setting: such a trial is here once for each."""
        return (*self.teachers, *self.students)

    @property
    def trials(self) -> dict[str, Trial]:
        """What there is to train, by key: each trial once."""
        return {planned.trial.key: planned.trial for planned in self.all}

    def pending(self, layout: Layout) -> list[Trial]:
        """Trials that have not been run to their end yet."""
        return [trial for key, trial in self.trials.items() if not layout.trial(key).done]


class Variant(NamedTuple):
    """One point of a method's grid."""

    method: str
    axes: dict[str, Any]
    objective: dict[str, dict[str, Any]]


def make(loaded: Loaded) -> Plan:
    """Expand a sweep into trials.

    Raises:
        ConfigError: with every problem of every part: data set, networks, terms, layers, values.
    """
    problems = list(loaded.problems)
    data: Data | None = _section(loaded, "data", Data)
    methods: dict[str, dict[str, Any]] = _section(loaded, "methods", dict[str, dict[str, Any]]) or {}
    pairs = _pairs(_section(loaded, "pairs", tuple[Pair, ...]) or (), problems)
    if data is not None:
        problems += _data_problems(data)
    variants = _variants(methods, problems)
    for variant in variants:
        problems += _impossible(variant, pairs)
    train_t = _teacher_recipe(loaded.spec, problems) if loaded.spec else None
    if problems or loaded.spec is None or data is None or train_t is None:
        raise ConfigError(loaded.source, dict.fromkeys(problems))
    return _expand(loaded, loaded.spec, variants, train_t)


def _expand(loaded: Loaded, spec: SweepSpec, variants: list[Variant], train_t: Train) -> Plan:
    data = spec.data
    teachers = {pair.teacher: _teacher(pair.teacher, data, train_t, spec.teacher.seed) for pair in spec.pairs}
    students = tuple(
        _student(variant, pair.student, teachers[pair.teacher].trial, data, spec.train, seed)
        for pair in spec.pairs
        for variant in variants
        for seed in spec.seeds
    )
    planned = (*teachers.values(), *students)
    return Plan(_info(loaded, spec, planned), spec, tuple(teachers.values()), students, _warnings(spec))


def _section(loaded: Loaded, name: str, kind: Any) -> Any:
    """A part of the file, or None where that part is not as it should be (which `loaded.problems` tells)."""
    if loaded.spec is not None:
        return getattr(loaded.spec, name)
    try:
        return TypeAdapter(kind).validate_python(loaded.tree.get(name), strict=False)
    except ValidationError:
        return None


def _data_problems(data: Data) -> Iterator[Problem]:
    known = plugins.names("data")
    if data.name in known:
        yield from _split_problems(data, plugins.cards("data")[data.name])
    else:
        yield Problem("data.name", plugins.unknown("data set", data.name, known))


def _split_problems(data: Data, card: DataCard) -> Iterator[Problem]:
    images = min(data.limit or card.train, card.train)
    if data.limit is not None and data.limit > card.train:
        yield Problem("data.limit", f"{data.name} has {card.train} training images, {data.limit} are asked for.")
    if data.val >= 1 and (data.val >= images or data.val != int(data.val)):
        yield Problem("data.val", f"a count below the {images} training images, or a share below 1. Got {data.val}.")


def _teacher_recipe(spec: SweepSpec, problems: list[Problem]) -> Train | None:
    try:
        return Train.model_validate(merge(spec.train.model_dump(mode="json"), spec.teacher.train, depth=1))
    except ValidationError as error:
        problems += plugins.problems_of(error, Train, "teacher.train")
        return None


def _pairs(pairs: tuple[Pair, ...], problems: list[Problem]) -> list[tuple[str, ModelCard, ModelCard]]:
    """(title, teacher's card, student's card) of every pair whose networks are known."""
    cards = plugins.cards("models")
    found = []
    for index, pair in enumerate(pairs):
        missing = [who for who in ("teacher", "student") if getattr(pair, who) not in cards]
        for who in missing:
            message = plugins.unknown("model", getattr(pair, who), list(cards))
            problems.append(Problem(f"pairs.{index}.{who}", message))
        if not missing:
            found.append((f"{pair.student} ← {pair.teacher}", cards[pair.teacher], cards[pair.student]))
    return found


def _variants(methods: dict[str, dict[str, Any]], problems: list[Problem]) -> list[Variant]:
    """Every method at every point of its grid, with all defaults filled in."""
    variants = []
    for method, terms in methods.items():
        if not terms:
            problems.append(Problem(f"methods.{method}", "has no terms; e.g. {ce: 1, kd: {weight: 0.9}}."))
        problems += _axis_problems(terms, f"methods.{method}")
        for axes in _grid(terms):
            objective = {}
            for term, value in terms.items():
                options = _at(_options(value), term, axes)
                try:
                    config = plugins.configure("losses", str(term), options, f"methods.{method}.{term}")
                    objective[term] = config.model_dump(mode="json")
                except ConfigError as error:
                    problems += error.problems
            variants.append(Variant(method, axes, objective))
    return variants


def _options(value: Any) -> Any:
    """`kd: 0.9` is short for `kd: {weight: 0.9}`."""
    return value if isinstance(value, Mapping) and set(value) != {"grid"} else {"weight": value}


def _grid(terms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes under a method: dotted path → value."""
    axes = {path: values for term, value in terms.items() for path, values in _axes(_options(value), term)}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


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


def _axes(value: Any, path: str) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(value, Mapping):
        if set(value) == {"grid"} and isinstance(value["grid"], list):
            yield path, value["grid"]
        else:
            for key, below in value.items():
                yield from _axes(below, f"{path}.{key}")


def _at(value: Any, path: str, axes: Mapping[str, Any]) -> Any:
    """`value` with each axis replaced by its value at one point of the grid."""
    if path in axes:
        return axes[path]
    if isinstance(value, Mapping):
        return {key: _at(below, f"{path}.{key}", axes) for key, below in value.items()}
    return value


def _impossible(variant: Variant, pairs: list[tuple[str, ModelCard, ModelCard]]) -> Iterator[Problem]:
    """What a term asks for and a pair cannot give."""
    for term, options in variant.objective.items():
        config = plugins.head("losses", term).Config.model_validate(options)
        for name, teacher, student in pairs:
            for problem in config.check(student, teacher):
                where = f"methods.{variant.method}.{term}.{problem.path}".rstrip(".")
                yield Problem(where, f"({name}) {problem.message}")


def _teacher(name: str, data: Data, train: Train, seed: int) -> Planned:
    objective = {"ce": plugins.configure("losses", "ce", {}).model_dump(mode="json")}
    trial = Trial(data=data, student=Model(name=name), objective=objective, train=train, seed=seed)
    label = Label(key=trial.key, role="teacher", method="teacher", pair=name, student=name, teacher="", seed=seed)
    return Planned(trial, label)


def _student(variant: Variant, name: str, teacher: Trial, data: Data, train: Train, seed: int) -> Planned:
    trial = Trial(
        data=data, student=Model(name=name), teacher=teacher, objective=variant.objective, train=train, seed=seed
    )
    label = Label(
        key=trial.key,
        role="student",
        method=variant.method,
        pair=f"{name} ← {teacher.student.name}",
        student=name,
        teacher=teacher.student.name,
        seed=seed,
        axes=variant.axes,
    )
    return Planned(trial, label)


def _info(loaded: Loaded, spec: SweepSpec, planned: tuple[Planned, ...]) -> SweepInfo:
    labels = tuple(item.label for item in planned)
    identity = {"name": spec.name, "labels": [json.loads(label.model_dump_json()) for label in labels]}
    return SweepInfo(
        name=f"{spec.name}-{loaded.profile}" if loaded.profile else spec.name,
        key=digest(identity),
        question=spec.question,
        profile=loaded.profile,
        yaml=yaml.safe_dump(loaded.tree, sort_keys=False, allow_unicode=True),
        notes=_notes(spec, spec.data),
        dataset=spec.data.name,
        labels=labels,
    )


def _notes(spec: SweepSpec, data: Data) -> tuple[str, ...]:
    """What has to stand beside the numbers: images, budget, selection rule."""
    card: DataCard = plugins.cards("data")[data.name]
    images = data.limit or card.train
    val = int(data.val if data.val >= 1 else round(data.val * images))
    epochs_t = spec.teacher.train.get("epochs", spec.train.epochs)
    selection = (
        f"{val} training images are held out for validation (split seed {data.split_seed}); the test set is measured "
        "with the last weights and with those that were best on validation."
        if val
        else "No validation split: all training images train, the test set is measured with the weights of the last "
        "epoch, as is usual in the literature."
    )
    return (
        f"Data: {data.name}, {images - val} training images of {card.train}, {card.test} test images.",
        f"Budget: epochs of a student {spec.train.epochs}, of a teacher {epochs_t}; "
        f"batch size {spec.train.batch_size}, {spec.train.optimizer.name} "
        f"with learning rate {spec.train.optimizer.lr:g}, {spec.train.schedule.name} schedule.",
        selection,
        f"{len(spec.seeds)} seed{'s' * (len(spec.seeds) > 1)} per method; methods share teacher, batches, augmentation "
        "and initial weights, so differences are paired by seed. ± is the sample standard deviation over seeds.",
    )


def _warnings(spec: SweepSpec) -> tuple[str, ...]:
    cards = plugins.cards("models")
    return tuple(
        f"pairs.{index}: the teacher {pair.teacher} ({cards[pair.teacher].params:,} parameters) is smaller than the "
        f"student {pair.student} ({cards[pair.student].params:,})."
        for index, pair in enumerate(spec.pairs)
        if cards[pair.teacher].params < cards[pair.student].params
    )
