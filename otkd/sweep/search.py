"""How configurations are chosen: the `search:` of a sweep file, its studies, and what is drawn for them.

A *study* is one pair and one method with the settings that are searched for it. All studies get the same number of
configurations, so that methods are tuned at equal effort. Imports neither torch nor ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from otkd.core.config import StrictModel
from otkd.core.errors import Problem
from otkd.core.trial import digest
from otkd.sweep.ranges import Choice, Interval, Range

if TYPE_CHECKING:
    from otkd.sweep.plan import Planned


TRIES, MANY = 20, 1000
"""So often each of a space's configurations could be drawn before it counts as used up; of no more than so many."""


class Budget(StrictModel):
    """No new configuration begins once either is used up; what has begun goes on to its end."""

    hours: PositiveFloat | None = None
    """Hours of slots (a cohort's GPU or cores), summed over trials."""
    trials: PositiveInt | None = None
    """Trials begun; a configuration has one for each seed."""

    @model_validator(mode="after")
    def _names_something(self) -> Budget:
        if self.hours is None and self.trials is None:
            raise ValueError("name hours or trials, e.g. {hours: 12}.")
        return self


class Fifo(StrictModel):
    """Every configuration is trained to its end."""

    name: Literal["fifo"]


class Asha(StrictModel):
    """Asynchronous successive halving: at each rung only the best share goes on (Li et al., MLSys 2020)."""

    name: Literal["asha"]
    grace: PositiveInt = 1
    """Epochs before a configuration may be stopped: the first rung."""
    factor: Annotated[float, Field(gt=1)] = 3
    """Rungs are `factor` times apart, and one in `factor` goes on."""


class HyperBand(StrictModel):
    """Synchronous successive halving in brackets (Li et al., JMLR 2018)."""

    name: Literal["hyperband"]
    factor: Annotated[float, Field(gt=1)] = 3
    """One in `factor` goes on."""


class Median(StrictModel):
    """Stops what is below the median of the others' running means (Golovin et al., KDD 2017)."""

    name: Literal["median"]
    grace: PositiveInt = 1
    """Epochs before a configuration may be stopped."""
    samples: PositiveInt = 3
    """Configurations to compare with before any is stopped."""


def _scheduler(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


Schedulers = Fifo | Asha | HyperBand | Median
Scheduler = Annotated[
    Schedulers,
    Field(discriminator="name"),
    BeforeValidator(_scheduler, json_schema_input_type=Literal["fifo", "asha", "hyperband", "median"] | Schedulers),
]


class Plateau(StrictModel):
    """When a configuration has stopped gaining."""

    epochs: PositiveInt = 10
    """Epochs without a gain after which it ends."""
    delta: NonNegativeFloat = 0.0
    """The least gain in mean val top-1 that counts, in percentage points."""


class Stop(StrictModel):
    """What else ends a configuration, or a study."""

    target: Annotated[float, Field(gt=0, le=100)] | None = None
    """Mean val top-1 in percent: once a configuration has it, its study begins no other."""
    plateau: Plateau | None = None
    """Ends a configuration that has stopped gaining."""
    hours: PositiveFloat | None = None
    """Hours after which a configuration ends."""


class Final(StrictModel):
    """The winner of each study is trained again on all training images and tested once."""

    seeds: PositiveInt = 5
    """How many seeds, none of which the search has seen."""


class Search(StrictModel):
    """How configurations are chosen."""

    kind: Literal["grid", "random", "optuna"] = "grid"
    """`grid`: every combination of the axes in the methods. `random`: drawn from `space`. `optuna`: suggested by its
    TPE sampler, which learns from what has been tried."""
    space: dict[str, Range] = Field(default_factory=dict)
    """Dotted path of this file (`methods.ot.transport.weight`, `train.optimizer.lr`) → `{uniform: [low, high]}`,
    `{loguniform: …}`, `{int: …}`, `{logint: …}` or `{choice: [...]}`. Paths of a method are searched for it alone."""
    samples: PositiveInt | None = None
    """Configurations of each study, which is a pair and a method; not for `grid`."""
    budget: Budget | None = None
    """When no new configuration begins: `{hours: 12}` or `{trials: 100}`."""
    scheduler: Scheduler = Fifo(name="fifo")
    """Which configurations are stopped early: `fifo` (none), `asha`, `hyperband`, `median`, or {name, its options}."""
    stop: Stop = Stop()
    """Further rules that end a configuration or a study."""
    final: Final | None = None
    """Train the winner of each study again on all training images, with fresh seeds, and test it once."""
    seed: NonNegativeInt = 0
    """Seed of what is drawn."""

    @property
    def plain(self) -> bool:
        """A grid of which every trial is trained to its end and compared: nothing is chosen."""
        return self == Search(seed=self.seed)


class Dimension(NamedTuple):
    """One setting that is searched."""

    path: str
    """Dotted, from the top of the file."""
    range: Interval | Choice


class Study(NamedTuple):
    """One pair and one method, and what is searched for it."""

    pair: str
    """`student ← teacher`, as in labels."""
    method: str
    space: tuple[Dimension, ...]
    """In the order of the file; empty for a method that has nothing to choose."""

    @property
    def title(self) -> str:
        """`resnet8 ← resnet20 · ot`."""
        return f"{self.pair} · {self.method}"

    @property
    def points(self) -> int:
        """Combinations of the choices; what a grid has."""
        return math.prod(len(dimension.range.ends) for dimension in self.space)


class Candidate(NamedTuple):
    """One configuration of a study: a trial for each seed, judged together."""

    study: Study
    number: int
    """From 0, in the order of suggestion."""
    values: dict[str, Any]
    """Dotted path → value."""
    planned: tuple[Planned, ...]
    """One a seed."""


def draw(study: Study, number: int, seed: int, again: int = 0) -> dict[str, Any]:
    """The values of a study's random configuration `number`: always the same, whatever else was drawn before.

    Args:
        again: which draw for that number this is, where the first ones were like others that were tried.
    """
    salt = (again,) if again else ()
    return {path: range_.at(_share(seed, study.title, number, path, *salt)) for path, range_ in study.space}


def drawn_again(search: Search, study: Study, number: int) -> Iterator[dict[str, Any]]:
    """What takes the place of values that were tried before, one after the other; a grid has none to offer."""
    tries = 0 if search.kind == "grid" or not study.space else TRIES * min(most(study), MANY)
    return (draw(study, number, search.seed, again) for again in range(1, 1 + int(tries)))


def most(study: Study) -> float:
    """How many different configurations a study's space has; infinite with an interval that is not of whole numbers."""
    return math.prod(_count(range_) for _, range_ in study.space)


def _count(range_: Range) -> float:
    if isinstance(range_, Choice):
        return len(range_.values)
    return range_.high - range_.low + 1 if range_.whole else math.inf


def point(study: Study, number: int) -> dict[str, Any]:
    """The values of a grid's configuration `number`; the last axis changes fastest."""
    values = {}
    for path, range_ in reversed(study.space):
        number, place_ = divmod(number, len(range_.ends))
        values[path] = range_.ends[place_]
    return dict(reversed(values.items()))


def configurations(search: Search, study: Study) -> int:
    """How many configurations a study has at most."""
    if search.kind == "grid" or not study.space:
        return study.points
    return int(min(search.samples or 1, most(study)))


def shortages(search: Search, studies: Sequence[Study]) -> Iterator[str]:
    """Studies that have fewer configurations than are asked for."""
    for study in studies:
        count = configurations(search, study)
        if study.space and search.samples is not None and count < search.samples:
            yield f"search.samples: {search.samples} are asked for, {study.title} has {count} different configurations."


def order(search: Search, study: Study) -> list[int]:
    """In which order a study's configurations are tried.

    Those of a grid at random: schedulers and budgets take what comes first for a sample of the rest.
    """
    numbers = range(configurations(search, study))
    if search.kind != "grid":
        return list(numbers)
    return sorted(numbers, key=lambda number: _share(search.seed, study.title, number))


def known(search: Search, study: Study) -> list[dict[str, Any]]:
    """The values, as first drawn, of all configurations that do not depend on what is found; optuna's do."""
    if search.kind == "grid" or not study.space:
        return [point(study, number) for number in range(study.points)]
    if search.kind == "random":
        return [draw(study, number, search.seed) for number in range(configurations(search, study))]
    return []


def _share(*what: Any) -> float:
    """A number from 0 to 1 that is random in all but that the same comes out for the same."""
    return int(digest(what), 16) / 2**64


def problems(search: Search, val: float, epochs: int, processes: int) -> Iterator[Problem]:
    """What of a search does not go together.

    Args:
        val: images held out for validation, as `data.val` has them.
        epochs: of one student.
        processes: that share a trial.
    """
    if search.plain:
        return
    if not val:
        text = "tuning reads validation images, and none are held out: set data.val, e.g. data: {val: 0.1}."
        yield Problem("search", text)
    if processes > 1:
        yield Problem("search", "trains each configuration in one process; leave resources.gpus_per_trial at 1.")
    yield from _grid_problems(search) if search.kind == "grid" else _space_problems(search)
    grace = getattr(search.scheduler, "grace", 0)
    if grace > epochs:
        text = f"no configuration trains for longer than train.epochs, {epochs}. Got {grace}."
        yield Problem("search.scheduler.grace", text)
    yield from _bracket_problems(search)


def _bracket_problems(search: Search) -> Iterator[Problem]:
    """Brackets of hyperband are filled before anything is known of a configuration."""
    if search.scheduler.name != "hyperband":
        return
    text = "hyperband begins all configurations before it knows of any how good it is; take asha."
    if search.kind == "optuna":
        yield Problem("search.kind", f"optuna suggests by what has ended, and {text}")
    for field, value in (("budget.hours", search.budget and search.budget.hours), ("stop.target", search.stop.target)):
        if value is not None:
            yield Problem(f"search.{field}", f"has nothing to keep from beginning: {text}")


def _grid_problems(search: Search) -> Iterator[Problem]:
    if search.space:
        text = "axes of a grid stand in the methods, as {grid: [...]}; for a space take `kind: random` or `optuna`."
        yield Problem("search.space", text)
    if search.samples is not None:
        yield Problem("search.samples", "a grid has as many configurations as its axes make; leave it out.")


def _space_problems(search: Search) -> Iterator[Problem]:
    if not search.space:
        example = "{methods.kd.kd.temperature: {uniform: [1, 8]}}"
        yield Problem("search.space", f"is missing: which settings are searched, and where? E.g. {example}.")
    if search.samples is None:
        yield Problem("search.samples", "is missing: how many configurations does each study get?")
    for path in search.space:
        for whole in (other for other in search.space if path.startswith(f"{other}.")):
            yield Problem(f"search.space.{path}", f"lies within {whole}, which is searched as a whole; keep one.")


def fresh_seeds(search: Search, seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds of the final trials: the numbers that follow on those of the search."""
    begin = max(seeds) + 1
    return tuple(range(begin, begin + (search.final or Final()).seeds))


def shown(values: Mapping[str, Any]) -> str:
    """Values by the last word of their path: `weight=3.1, epsilon=0.02`; by all of it where that is not clear."""
    last = [path.split(".")[-1] for path in values]
    named = (word if last.count(word) == 1 else path for word, path in zip(last, values, strict=True))
    return ", ".join(f"{name}={value}" for name, value in zip(named, values.values(), strict=True))


def notes(search: Search, studies: Sequence[Study], seeds: Sequence[int]) -> Iterator[str]:
    """What a reader of the tables has to know of a search: effort, rule of selection, what is done with the winner."""
    if not studies:
        return
    counts = dict.fromkeys(configurations(search, study) for study in studies)
    effort = f"at most {' or '.join(map(str, counts))} configuration{'s' * (list(counts) != [1])} each"
    yield (
        f"Search: {search.kind}, {len(studies)} stud{'ies' if len(studies) > 1 else 'y'} (pair × method), {effort}, "
        f"scheduler {_settings(search.scheduler)}{_budget(search)}. The configuration with the highest val top-1 wins: "
        f"best epoch, mean over {_seeds(seeds)}, of those trained to their end. Test images play no part in it."
    )
    searched = (", ".join(f"{path} {range_}" for path, range_ in study.space) for study in studies)
    methods = (study.method for study in studies)
    for method, space in dict.fromkeys(zip(methods, searched, strict=True)):
        yield f"Searched for {method}: {space or 'nothing, it has one configuration'}."
    if search.final is not None:
        yield (
            "Winners, and their teachers, are trained again on all training images and tested once, with the weights "
            f"of the last epoch, with {_seeds(fresh_seeds(search, seeds))}, which the search has not seen."
        )


def _settings(scheduler: Schedulers) -> str:
    options = ", ".join(f"{name} {value:g}" for name, value in scheduler.model_dump(exclude={"name"}).items())
    return f"{scheduler.name} ({options})" if options else scheduler.name


def _budget(search: Search) -> str:
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    parts = [f"{value:g} {unit}" for unit, value in budget.items()]
    return f", budget {' or '.join(parts)}" if parts else ""


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
