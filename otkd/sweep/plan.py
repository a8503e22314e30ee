"""From a checked sweep to its trials, in stages: teachers, then students. Imports neither torch nor ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from otkd.core import datasets, plugins
from otkd.core.cards import DataCard
from otkd.core.errors import ConfigError, DataError, OtkdError, Problem, did_you_mean
from otkd.core.layout import Layout
from otkd.core.records import Label, Stage, SweepInfo
from otkd.core.trial import Data, Model, Train, Trial, digest
from otkd.core.weights import Given
from otkd.core.weights import digest as digest_of
from otkd.sweep import search, space
from otkd.sweep.drawing import Drawing
from otkd.sweep.methods import pair_problems, specials
from otkd.sweep.search import Candidate, Search, Study
from otkd.sweep.space import Base, configured, dimensions
from otkd.sweep.spec import Loaded, Network, Pair, Recipe, SweepSpec, readable
from otkd.sweep.trees import merge
from otkd.sweep.variants import Variant, expand, impossible, of_pair, unmixable

IMAGENET = 1000
"""Classes of the weights that come with networks."""


class Planned(NamedTuple):
    """A trial and how the sweep presents it."""

    trial: Trial
    label: Label


class Cast(NamedTuple):
    """A pair, and what all of its students share."""

    pair: Pair
    title: str
    """`student ← teacher`, as tables call them."""
    student: Model
    teacher: Planned


class Plan(NamedTuple):
    """Everything that a sweep will run."""

    info: SweepInfo
    spec: SweepSpec
    teachers: tuple[Planned, ...]
    students: tuple[Planned, ...]
    """None where configurations are searched: there are studies then."""
    weights: tuple[Given, ...]
    """Weights from outside, to be taken in first."""
    warnings: tuple[str, ...]
    casts: tuple[Cast, ...] = ()
    """The pairs."""
    studies: tuple[Study, ...] = ()
    """What is searched; none for a grid whose trials are all trained and compared."""

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

    def candidate(self, study: Study, number: int, values: Mapping[str, Any]) -> Candidate:
        """The trials of a study's configuration `number`, whose values stand by their dotted paths.

        Raises:
            ConfigError: the values do not go together, or not with this pair.
        """
        cast = self._cast(study)
        train, variant = configured(_base(self.spec), cast.pair, study.method, values)
        seeds = self.spec.seeds
        planned = tuple(_student(variant, cast, self.spec.data, train, seed, "search") for seed in seeds)
        return Candidate(study, number, dict(values), planned)

    def known(self, study: Study) -> Iterator[Candidate]:
        """The candidates of a study that do not depend on what the search finds; optuna's do.

        Draws that do not go together are left out, and those like an earlier one drawn again, as the search does it.
        """
        drawing = Drawing(self.spec.search, study, self.candidate)
        for number, values in enumerate(search.known(self.spec.search, study)):
            with suppress(ConfigError):
                if (candidate := drawing.take(number, values)) is not None:
                    yield candidate

    def final(self, winners: Mapping[Study, Mapping[str, Any]]) -> Plan:
        """Each study's winning values, trained again on all training images with seeds that the search has not seen.

        Teachers are trained on all training images, too. `info` is that of this sweep with the new labels.
        """
        spec = _final_spec(self.spec)
        casts = {study.pair: _recast(self._cast(study), spec.data) for study in winners}
        students = tuple(
            planned
            for study, values in winners.items()
            for planned in _finalists(spec, casts[study.pair], study.method, values)
        )
        teachers = {cast.teacher.trial.key: cast.teacher for cast in casts.values()}
        planned = (*teachers.values(), *students)
        return Plan(
            info=_final_info(self.info, winners).with_labels(item.label for item in planned),
            spec=spec,
            teachers=tuple(teachers.values()),
            students=students,
            weights=self.weights,
            warnings=(),
            casts=tuple(casts.values()),
        )

    def _cast(self, study: Study) -> Cast:
        return next(cast for cast in self.casts if cast.title == study.pair)


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
    pairs = _known(_pairs(loaded), card, problems)
    if data is not None:
        problems += _data_problems(data)
    for method, terms in methods.items():
        problems += pair_problems(method, terms, plugins.cards("models"))
        for special in specials(terms):
            expand({method: special}, problems)
    variants = {pair: expand(of_pair(pair, methods), problems) for pair in pairs}
    for pair, own in variants.items():
        for variant in own:
            problems += impossible(variant, pair)
            problems += unmixable(variant, data)
    train_t = _teacher_recipe(loaded.spec, problems) if loaded.spec else None
    problems += _unshareable(loaded.spec, train_t)
    problems += _search_problems(loaded, data, methods, variants)
    if problems or loaded.spec is None or data is None or train_t is None:
        raise ConfigError(loaded.source, dict.fromkeys(problems))
    return _expand(loaded, loaded.spec.model_copy(update={"data": data}), variants, train_t)


def _expand(loaded: Loaded, spec: SweepSpec, variants: dict[Pair, list[Variant]], train_t: Train) -> Plan:
    networks = {
        network: Model(name=network.name, weights=network.weights and digest_of(network.weights))
        for pair in spec.pairs
        for network in (pair.teacher, pair.student)
    }
    casts = _casts(spec, networks, train_t)
    studies = () if spec.search.plain else tuple(_studies(spec, casts))
    teachers = tuple({cast.pair.teacher: cast.teacher for cast in casts}.values())
    students = tuple(
        _student(variant, cast, spec.data, spec.train, seed)
        for cast in casts
        for variant in variants[cast.pair]
        for seed in spec.seeds
        if not studies
    )
    weights = tuple(_given(spec.pairs, networks))
    notes = (*search.notes(spec.search, studies, spec.seeds), *_stages(variants), *_origins(weights, spec.data))
    info = _info(loaded, spec, (*teachers, *students), notes)
    shortages = search.shortages(spec.search, studies)
    warnings = dict.fromkeys([*_small_teachers(spec), *_late_schedules(variants, spec.train.epochs), *shortages])
    return Plan(info, spec, teachers, students, weights, tuple(warnings), casts, studies)


def _casts(spec: SweepSpec, networks: Mapping[Network, Model], train_t: Train) -> tuple[Cast, ...]:
    """Every pair with its teacher, which pairs of one teacher share."""
    titles = _titles(networks)
    stage: Stage = "" if spec.search.plain else "search"
    teachers = {
        network: _teacher(networks[network], titles[network], spec.data, train_t, spec.teacher.seed, stage)
        for network in dict.fromkeys(pair.teacher for pair in spec.pairs)
    }
    return tuple(
        Cast(
            pair=pair,
            title=f"{titles[pair.student]} ← {titles[pair.teacher]}",
            student=networks[pair.student],
            teacher=teachers[pair.teacher],
        )
        for pair in spec.pairs
    )


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


def _section(loaded: Loaded, name: str, kind: Any) -> Any:
    """A part of the file, or None where that part is not as it should be (which `loaded.problems` tells)."""
    return readable(kind, loaded.tree.get(name)) if loaded.spec is None else getattr(loaded.spec, name)


def _pairs(loaded: Loaded) -> Sequence[Pair | None]:
    """The pairs, each None that is not as it should be."""
    if loaded.spec is not None:
        return loaded.spec.pairs
    given = loaded.tree.get("pairs")
    return [readable(Pair, item) for item in given] if isinstance(given, list) else []


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
    if 0 < data.val < 1 and not 0 < round(data.val * images) < images:
        text = f"of the {images} training images some are to be held out, and some trained on; as a share, {data.val}"
        yield Problem("data.val", f"{text} is {round(data.val * images)} of them. 0 holds out none.")


def _teacher_recipe(spec: SweepSpec, problems: list[Problem]) -> Train | None:
    try:
        return Recipe.model_validate(merge(spec.train.model_dump(mode="json"), spec.teacher.train, depth=1))
    except ValidationError as error:
        problems += plugins.problems_of(error, Recipe, "teacher.train")
        return None


def _known(pairs: Sequence[Pair | None], data: DataCard | None, problems: list[Problem]) -> list[Pair]:
    """The pairs whose students are known, and made for the images of a data set; the problems of both networks."""
    found = []
    for index, pair in enumerate(pairs):
        if pair is None:
            continue
        wrong = {who: list(_network_problems(getattr(pair, who), who, data)) for who in ("teacher", "student")}
        of_both = (*wrong["teacher"], *wrong["student"])
        problems += [Problem(f"pairs.{index}.{problem.path}", problem.message) for problem in of_both]
        if not wrong["student"]:
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


def _teacher(network: Model, title: str, data: Data, train: Train, seed: int, stage: Stage) -> Planned:
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
        stage=stage,
    )
    return Planned(trial, label)


def _student(variant: Variant, cast: Cast, data: Data, train: Train, seed: int, stage: Stage = "") -> Planned:
    teacher = cast.teacher.trial
    trial = Trial(data=data, student=cast.student, teacher=teacher, objective=variant.objective, train=train, seed=seed)
    label = Label(
        key=trial.key,
        role="student",
        method=variant.method,
        pair=cast.title,
        student=cast.pair.student.name,
        teacher=cast.pair.teacher.name,
        seed=seed,
        axes=variant.axes,
        stage=stage,
    )
    return Planned(trial, label)


def _studies(spec: SweepSpec, casts: Iterable[Cast]) -> Iterator[Study]:
    for cast in casts:
        for method in of_pair(cast.pair, spec.methods):
            yield Study(cast.title, method, dimensions(spec.search, _base(spec), cast.pair, method))


def _base(spec: SweepSpec) -> Base:
    return Base(spec.methods, spec.train, spec.data)


def _search_problems(
    loaded: Loaded, data: Data | None, methods: dict[str, dict[str, Any]], variants: dict[Pair, list[Variant]]
) -> Iterator[Problem]:
    """What is wrong with `search:`, where the parts that it speaks of can be read.

    What cannot be read of itself is left out, and then so is what only follows from that.
    """
    told = [problem.path for problem in loaded.problems if problem.path.startswith("search.")]
    found: Search = _section(loaded, "search", Search) if not told else readable(Search, loaded.tree["search"], _spare)
    recipe: Recipe | None = _section(loaded, "train", Recipe)
    processes = loaded.spec.resources.gpus_per_trial if loaded.spec else 1
    if recipe is not None and data is not None:
        for problem in space.problems(found or Search(), Base(methods, recipe, data), variants, processes):
            if not told or (problem.path.startswith("search") and not _follows(problem.path, told)):
                yield problem


def _spare(place: tuple[Any, ...]) -> tuple[Any, ...]:
    """What of a search to leave out for a wrong place: a range, or a setting; by its kind all is judged."""
    return () if place[0] == "kind" else place[: 2 if place[0] == "space" else 1]


def _follows(path: str, told: Iterable[str]) -> bool:
    """Whether a problem may be there only because of what was left out for others."""
    return any(f"{other}.".startswith(f"{path}.") for other in told) and path != "search"


def _final_spec(spec: SweepSpec) -> SweepSpec:
    """The sweep that trains winners again: nothing held out, seeds that are not among those of the search."""
    data = spec.data.model_copy(update={"val": 0.0})
    seeds = search.fresh_seeds(spec.search, spec.seeds)
    return spec.model_copy(update={"data": data, "seeds": seeds, "search": Search()})


def _recast(cast: Cast, data: Data) -> Cast:
    """A pair whose teacher is trained on other data."""
    trial = cast.teacher.trial.model_copy(update={"data": data})
    label = cast.teacher.label.model_copy(update={"key": trial.key, "stage": "final"})
    return cast._replace(teacher=Planned(trial, label))


def _finalists(spec: SweepSpec, cast: Cast, method: str, values: Mapping[str, Any]) -> Iterator[Planned]:
    train, variant = configured(_base(spec), cast.pair, method, values)
    for seed in spec.seeds:
        yield _student(variant._replace(axes={}), cast, spec.data, train, seed, "final")


def _final_info(info: SweepInfo, winners: Mapping[Study, Mapping[str, Any]]) -> SweepInfo:
    """The sweep with its winners among the notes, and behind its YAML, which stays one that can be run."""
    found = [f"{study.title}: {search.shown(values) or 'nothing to choose'}" for study, values in winners.items()]
    comment = "".join(f"#   {line}\n" for line in found)
    return info.model_copy(
        update={
            "notes": (*info.notes, *(f"Winner of {line}." for line in found)),
            "yaml": f"{info.yaml}# Winners of the search:\n{comment}",
        }
    )


def _info(loaded: Loaded, spec: SweepSpec, planned: tuple[Planned, ...], notes: tuple[str, ...]) -> SweepInfo:
    labels = tuple(item.label for item in planned)
    identity = {
        "name": spec.name,
        "labels": [json.loads(label.model_dump_json(exclude={"stage"})) for label in labels],
    }
    if not spec.search.plain:  # labels come as configurations are suggested; more of them are the same sweep
        parts = spec.model_dump(mode="json", include={"data", "pairs", "train", "methods", "seeds"})
        identity |= parts | {"search": spec.search.model_dump(mode="json", exclude={"samples", "budget"})}
    return SweepInfo(
        name=f"{spec.name}-{loaded.profile}" if loaded.profile else spec.name,
        key=digest(identity),
        question=spec.question,
        profile=loaded.profile,
        yaml=yaml.safe_dump(loaded.tree, sort_keys=False, allow_unicode=True),
        notes=(*_notes(spec, spec.data), *notes),
        dataset=spec.data.name,
        finals=spec.search.final is not None,
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
    unit = "method" if spec.search.plain else "configuration"
    searched = ", but for what is searched" if any(path.startswith("train.") for path in spec.search.space) else ""
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
        f"with learning rate {spec.train.optimizer.lr:g}, {spec.train.schedule.name} schedule{searched}.",
        *_recipe(spec.train, data),
        selection,
        f"{len(spec.seeds)} seed{'s' * (len(spec.seeds) > 1)} per {unit}; methods share teacher, batches, augmentation "
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
