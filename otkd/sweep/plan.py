"""From a checked sweep to its trials, in stages: teachers, then students. Imports neither torch nor ray."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from otkd.core import datasets, plugins
from otkd.core.cards import DataCard
from otkd.core.errors import ConfigError, DataError, OtkdError, Problem, did_you_mean
from otkd.core.layout import Layout
from otkd.core.records import Label, SweepInfo
from otkd.core.trial import Data, Model, Train, Trial, digest
from otkd.core.weights import Given
from otkd.core.weights import digest as digest_of
from otkd.sweep.methods import for_pair, options_of, pair_problems, specials
from otkd.sweep.spec import Loaded, Network, Pair, Recipe, SweepSpec
from otkd.sweep.trees import merge

IMAGENET = 1000
"""Classes of the weights that come with networks."""


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
    weights: tuple[Given, ...]
    """Weights from outside, to be taken in first."""
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


def make(loaded: Loaded, data_dir: Path | None = None, cache_dir: Path = Path("runs/cache")) -> Plan:
    """Expand a sweep into trials.

    Args:
        data_dir: the user's data folder, for images of their own.
        cache_dir: our folder for what is known of these.

    Raises:
        ConfigError: with every problem of every part: data set, networks, terms, layers, values.
    """
    problems = list(loaded.problems)
    data = _surveyed(_section(loaded, "data", Data), data_dir, cache_dir, problems)
    methods: dict[str, dict[str, Any]] = _section(loaded, "methods", dict[str, dict[str, Any]]) or {}
    card = None if data is None else data.card
    pairs = _known(_section(loaded, "pairs", tuple[Pair, ...]) or (), card, problems)
    if data is not None:
        problems += _data_problems(data)
    for method, terms in methods.items():
        problems += pair_problems(method, terms, plugins.cards("models"))
        for special in specials(terms):
            _variants({method: special}, problems)
    variants = {pair: _variants(_for(pair, methods), problems) for pair in pairs}
    for pair, own in variants.items():
        for variant in own:
            problems += _impossible(variant, pair)
            problems += _unmixable(variant, data)
    train_t = _teacher_recipe(loaded.spec, problems) if loaded.spec else None
    problems += _unshareable(loaded.spec, train_t)
    if problems or loaded.spec is None or data is None or train_t is None:
        raise ConfigError(loaded.source, dict.fromkeys(problems))
    return _expand(loaded, loaded.spec.model_copy(update={"data": data}), variants, train_t)


def _expand(loaded: Loaded, spec: SweepSpec, variants: dict[Pair, list[Variant]], train_t: Train) -> Plan:
    networks = {
        network: Model(name=network.name, weights=network.weights and digest_of(network.weights))
        for pair in spec.pairs
        for network in (pair.teacher, pair.student)
    }
    titles = _titles(networks)
    teachers = {
        pair.teacher: _teacher(networks[pair.teacher], titles[pair.teacher], spec.data, train_t, spec.teacher.seed)
        for pair in spec.pairs
    }
    students = tuple(
        _student(variant, pair, networks[pair.student], titles, teachers[pair.teacher].trial, spec, seed)
        for pair, own in variants.items()
        for variant in own
        for seed in spec.seeds
    )
    planned = (*teachers.values(), *students)
    weights = tuple(_given(spec.pairs, networks))
    info = _info(loaded, spec, planned, (*_stages(variants), *_origins(weights, spec.data)))
    warnings = dict.fromkeys([*_small_teachers(spec), *_late_schedules(variants, spec.train.epochs)])
    return Plan(info, spec, tuple(teachers.values()), students, weights, tuple(warnings))


def _titles(networks: Mapping[Network, Model]) -> dict[Network, str]:
    """What tables call each network: its name, and its weights where they alone tell it from another."""
    named = {network: network.name for network in networks}
    filed = {
        network: f"{network.name} ({Path(network.weights).stem})" if network.weights else network.name
        for network in networks
    }
    hashed = {
        network: f"{network.name} ({Path(network.weights).stem}, {model.weights.split(':')[1][:6]})"
        if network.weights and model.weights
        else network.name
        for network, model in networks.items()
    }
    titles = {}
    for network in networks:
        candidates = (names for names in (named, filed) if list(names.values()).count(names[network]) == 1)
        titles[network] = next(candidates, hashed)[network]
    return titles


def _given(pairs: tuple[Pair, ...], models: Mapping[Network, Model]) -> Iterator[Given]:
    """The weights that the pairs name."""
    for begins, networks in ((False, [p.teacher for p in pairs]), (True, [p.student for p in pairs])):
        for network in dict.fromkeys(networks):
            digest = models[network].weights
            if network.weights is not None and digest is not None:
                yield Given(network.name, network.weights, digest, begins)


def _for(pair: Pair, methods: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    made = ((method, for_pair(terms, pair.teacher.name, pair.student.name)) for method, terms in methods.items())
    return {method: terms for method, terms in made if terms is not None}


def _section(loaded: Loaded, name: str, kind: Any) -> Any:
    """A part of the file, or None where that part is not as it should be (which `loaded.problems` tells)."""
    if loaded.spec is not None:
        return getattr(loaded.spec, name)
    try:
        return TypeAdapter(kind).validate_python(loaded.tree.get(name), strict=False)
    except ValidationError:
        return None


def _surveyed(data: Data | None, data_dir: Path | None, cache_dir: Path, problems: list[Problem]) -> Data | None:
    """The data with what is known of it; None where nothing can be."""
    if data is None or not datasets.known(data.name):
        problems += [] if data is None else [Problem("data.name", datasets.unknown(data.name))]
        return None
    try:
        return datasets.survey(data, data_dir, cache_dir)
    except DataError as error:
        problems.append(Problem("data.name", str(error)))
        return None


def _data_problems(data: Data) -> Iterator[Problem]:
    card = data.card
    images = min(data.limit or card.train, card.train)
    if data.limit is not None and data.limit > card.train:
        yield Problem("data.limit", f"{data.name} has {card.train} training images, {data.limit} are asked for.")
    if data.val >= 1 and (data.val >= images or data.val != int(data.val)):
        yield Problem("data.val", f"a count below the {images} training images, or a share below 1. Got {data.val}.")


def _teacher_recipe(spec: SweepSpec, problems: list[Problem]) -> Train | None:
    try:
        return Recipe.model_validate(merge(spec.train.model_dump(mode="json"), spec.teacher.train, depth=1))
    except ValidationError as error:
        problems += plugins.problems_of(error, Recipe, "teacher.train")
        return None


def _known(pairs: tuple[Pair, ...], data: DataCard | None, problems: list[Problem]) -> list[Pair]:
    """The pairs whose networks are known, and made for the images of a data set."""
    found = []
    for index, pair in enumerate(pairs):
        wrong = [
            problem for who in ("teacher", "student") for problem in _network_problems(getattr(pair, who), who, data)
        ]
        problems += [Problem(f"pairs.{index}.{problem.path}", problem.message) for problem in wrong]
        if not wrong:
            found.append(pair)
    return found


def _network_problems(network: Network, who: str, data: DataCard | None) -> Iterator[Problem]:
    cards = plugins.cards("models")
    try:
        known = network.name in cards
    except OtkdError as error:  # a family that could be there and is not
        yield Problem(who, str(error))
        return
    if not known:
        yield Problem(who, plugins.unknown("model", network.name, list(cards)))
        return
    least, most = cards[network.name].sides
    if data is not None and not least <= data.side <= (most or data.side):
        takes = f"{least} pixels and no other" if least == most else f"{least} pixels and more"
        yield Problem(who, f"{network.name} takes images of {takes}; this data set has {data.side}.")
    yield from _weights_problems(network, who, None if data is None else data.classes)


def _weights_problems(network: Network, who: str, classes: int | None) -> Iterator[Problem]:
    if network.weights is None:
        return
    path = Path(network.weights).expanduser()
    if path.is_file():
        if not os.access(path, os.R_OK):
            yield Problem(f"{who}.weights", f"{path} may not be read.")
    else:
        offered = plugins.cards("models")[network.name].weights
        if network.weights not in offered:
            there = f"it comes with {', '.join(offered)}" if offered else "it comes with none"
            text = f"there is no file {network.weights} here, and {network.name} has no weights of that name; {there}."
            yield Problem(f"{who}.weights", text + did_you_mean(network.weights, offered))
        elif who == "teacher" and classes not in (None, IMAGENET):
            text = f"{network.weights} tells the {IMAGENET} classes of ImageNet apart; this data set has {classes}."
            yield Problem(f"{who}.weights", text)


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
                options = _at(options_of(value), term, axes)
                try:
                    config = plugins.configure("losses", str(term), options, f"methods.{method}.{term}")
                    objective[term] = config.model_dump(mode="json")
                except ConfigError as error:
                    problems += error.problems
            variants.append(Variant(method, axes, objective))
    return variants


def _grid(terms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes under a method: dotted path → value."""
    axes = {path: values for term, value in terms.items() for path, values in _axes(options_of(value), term)}
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


def _impossible(variant: Variant, pair: Pair) -> Iterator[Problem]:
    """What a term asks for and a pair cannot give."""
    cards = plugins.cards("models")
    configs = {
        term: plugins.head("losses", term).Config.model_validate(options) for term, options in variant.objective.items()
    }
    if configs and not any(config.in_training for config in configs.values()):
        yield Problem(f"methods.{variant.method}", "no term takes part in the main stage; add one, e.g. {ce: 1}.")
    for term, config in configs.items():
        for problem in config.check(cards[pair.student.name], cards[pair.teacher.name]):
            where = f"methods.{variant.method}.{term}.{problem.path}".rstrip(".")
            yield Problem(where, f"({pair.student.name} ← {pair.teacher.name}) {problem.message}")


def _unshareable(spec: SweepSpec | None, train_t: Train | None) -> Iterator[Problem]:
    """Recipes that work in one process alone."""
    if spec is None or spec.resources.gpus_per_trial == 1:
        return
    for recipe, where in ((spec.train, "train"), (train_t or spec.train, "teacher.train")):
        text = f"does not work with resources.gpus_per_trial: {spec.resources.gpus_per_trial}; leave one of both out."
        if recipe.accumulate > 1:
            yield Problem(f"{where}.accumulate", text)
        if recipe.optimizer.name == "dot":
            yield Problem(f"{where}.optimizer", f"dot {text}")


def _unmixable(variant: Variant, data: Data | None) -> Iterator[Problem]:
    """Terms that are not defined for images of two labels."""
    if data is None or data.augment is None or not data.augment.mixes:
        return
    for term, options in variant.objective.items():
        if plugins.head("losses", term).Config.model_validate(options).one_label:
            text = "is defined for images of one label; leave out data.augment.mixup and cutmix, or this term."
            yield Problem(f"methods.{variant.method}.{term}", text)


def _teacher(network: Model, title: str, data: Data, train: Train, seed: int) -> Planned:
    """The teacher's trial: a training with cross-entropy, or the measuring of given weights."""
    if network.weights is None:
        objective = {"ce": plugins.configure("losses", "ce", {}).model_dump(mode="json")}
        trial = Trial(data=data, student=network, objective=objective, train=train, seed=seed)
    else:
        trial = Trial(data=data, student=network, objective={}, train=Train(epochs=0, precision=train.precision))
    label = Label(
        key=trial.key,
        role="teacher",
        method="teacher",
        pair=title,
        student=network.name,
        teacher="",
        seed=trial.seed,
    )
    return Planned(trial, label)


def _student(
    variant: Variant,
    pair: Pair,
    network: Model,
    titles: Mapping[Network, str],
    teacher: Trial,
    spec: SweepSpec,
    seed: int,
) -> Planned:
    trial = Trial(
        data=spec.data, student=network, teacher=teacher, objective=variant.objective, train=spec.train, seed=seed
    )
    label = Label(
        key=trial.key,
        role="student",
        method=variant.method,
        pair=f"{titles[pair.student]} ← {titles[pair.teacher]}",
        student=pair.student.name,
        teacher=pair.teacher.name,
        seed=seed,
        axes=variant.axes,
    )
    return Planned(trial, label)


def _info(loaded: Loaded, spec: SweepSpec, planned: tuple[Planned, ...], notes: tuple[str, ...]) -> SweepInfo:
    labels = tuple(item.label for item in planned)
    identity = {"name": spec.name, "labels": [json.loads(label.model_dump_json()) for label in labels]}
    return SweepInfo(
        name=f"{spec.name}-{loaded.profile}" if loaded.profile else spec.name,
        key=digest(identity),
        question=spec.question,
        profile=loaded.profile,
        yaml=yaml.safe_dump(loaded.tree, sort_keys=False, allow_unicode=True),
        notes=(*_notes(spec, spec.data), *notes),
        dataset=spec.data.name,
        labels=labels,
    )


def _notes(spec: SweepSpec, data: Data) -> tuple[str, ...]:
    """What has to stand beside the numbers: images, budget, selection rule."""
    card = data.card
    images = data.limit or card.train
    val = int(data.val if data.val >= 1 else round(data.val * images))
    epochs_t = spec.teacher.train.get("epochs", spec.train.epochs)
    trained = any(pair.teacher.weights is None for pair in spec.pairs)
    budget_t = f", of a teacher {epochs_t}" if trained else ""
    selection = (
        f"{val} training images are held out for validation (split seed {data.split_seed}); the test set is measured "
        "with the last weights and with those that were best on validation."
        if val
        else "No validation split: all training images train, the test set is measured with the weights of the last "
        "epoch, as is usual in the literature."
    )
    return (
        f"Data: {data.name}, {images - val} training images of {card.train}, {card.test} test images.",
        f"Budget: epochs of a student {spec.train.epochs}{budget_t}; "
        f"batch size {spec.train.batch_size}, {spec.train.optimizer.name} "
        f"with learning rate {spec.train.optimizer.lr:g}, {spec.train.schedule.name} schedule.",
        *_recipe(spec.train, data),
        selection,
        f"{len(spec.seeds)} seed{'s' * (len(spec.seeds) > 1)} per method; methods share teacher, batches, augmentation "
        "and initial weights, so differences are paired by seed. ± is the sample standard deviation over seeds.",
    )


def _recipe(train: Train, data: Data) -> Iterator[str]:
    """What else of the recipe a reader of the numbers has to know."""
    used = (data.augment or data.card.augment).model_dump(mode="json", exclude_defaults=True)
    settings = yaml.safe_dump(used, default_flow_style=True, sort_keys=False, width=1000).strip()[1:-1]
    yield f"Augmentation of training images: {settings or 'none'}."
    if train.ema is not None:
        yield f"Weights that are measured, selected and kept are a running average over steps (ema {train.ema:g})."
    if train.accumulate > 1:
        yield f"Each batch is cut into {train.accumulate} parts, which batch norm and losses see one at a time."
    if data.skip:
        yield f"Up to {data.skip} unreadable images are left out of an epoch."


def _stages(variants: Mapping[Pair, list[Variant]]) -> Iterator[str]:
    """Which methods train longer than the rest."""
    extra = {
        variant.method: epochs
        for own in variants.values()
        for variant in own
        if (epochs := stage_epochs(variant.objective))
    }
    if extra:
        listed = ", ".join(f"{method} {epochs}" for method, epochs in extra.items())
        yield f"Epochs of stages before the main one, on top of the budget and left out of seconds per epoch: {listed}."


def stage_epochs(objective: Mapping[str, Mapping[str, Any]]) -> int:
    """Epochs before the main stage that an objective asks for."""
    return sum((options.get("stages") or {}).get("epochs", 0) for options in objective.values())


def _origins(weights: tuple[Given, ...], data: Data) -> Iterator[str]:
    """Whose work the networks' weights are."""
    for given in weights:
        use = "begins with" if given.begins else "is not trained here: it has"
        yield f"{given.network} {use} the weights {Path(given.source).name} ({given.digest[:14]})."
    if weights and data.val:
        yield "Weights from outside may have been trained on the images that are held out here for validation."


def _small_teachers(spec: SweepSpec) -> Iterator[str]:
    cards = plugins.cards("models")
    for index, pair in enumerate(spec.pairs):
        params_t, params_s = (cards[network.name].params for network in (pair.teacher, pair.student))
        if params_t < params_s:
            yield (
                f"pairs.{index}: the teacher {pair.teacher.name} ({params_t:,} parameters) is smaller than the student "
                f"{pair.student.name} ({params_s:,})."
            )


def _late_schedules(variants: Mapping[Pair, list[Variant]], epochs: int) -> Iterator[str]:
    """Weights that a training of so few epochs never sees whole, or never sees fall."""
    for variant in (variant for own in variants.values() for variant in own):
        for term, options in variant.objective.items():
            schedule = options["schedule"] or {}
            last = schedule.get("epochs", schedule.get("start", 0))
            if last > epochs or (schedule.get("name") == "cosine" and last == epochs):
                what = "is not whole before" if schedule["name"] == "warmup" else "does not fall before"
                where = f"methods.{variant.method}.{term}.schedule"
                yield f"{where}: the weight {what} epoch {last}; students train {epochs}."
