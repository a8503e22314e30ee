"""The sweep file: YAML → profile → overrides → a checked `SweepSpec`. Imports neither torch nor ray."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from otkd.core import plugins
from otkd.core.config import StrictModel
from otkd.core.errors import ConfigError, Problem, did_you_mean
from otkd.core.trial import Data, Train
from otkd.sweep import methods, yamlfile
from otkd.sweep.search import Search
from otkd.sweep.trees import merge

AUTO, BASE, QUICK = "auto", "paper", "quick"


Items = TypeVar("Items", bound=tuple[Any, ...])
Place = tuple[Any, ...]
"""Where something is wrong, as pydantic has it."""


def _each_once(items: Items) -> Items:
    """Twice the same would count as two seeds, or two pairs, in every mean."""
    twice = [item for index, item in enumerate(items) if item in items[:index]]
    if twice:
        raise ValueError(f"{twice[0]} stands twice.")
    return items


class Network(StrictModel):
    """A network, and the weights that it begins with."""

    name: str
    """Architecture (`otkd list models`)."""
    weights: str | None = None
    """A file of trained weights, or the name of weights that come with the architecture (`IMAGENET1K_V1`)."""


def _network(given: Any) -> Any:
    return {"name": given} if isinstance(given, str) else given


NetworkField = Annotated[Network, BeforeValidator(_network)]


class Pair(StrictModel):
    """Who teaches whom."""

    teacher: NetworkField
    """The larger network (`otkd list models`), trained by the sweep; `{name, weights: file}` is taken as it is."""
    student: NetworkField
    """The network to be deployed; `{name, weights: file}` begins with those weights."""


class Recipe(Train):
    """How networks are trained."""

    epochs: PositiveInt
    """Passes over the training images."""


class TeacherSpec(StrictModel):
    """How teachers are trained where that differs from the students."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of `train` that differ for teachers, e.g. `{epochs: 30}`."""
    seed: NonNegativeInt = 0
    """Seed of every teacher; all seeds of the students learn from the same one."""


class Resources(StrictModel):
    """What one running cohort gets. Cannot change a result but by rounding (threads, and the device's arithmetic)."""

    cpu: PositiveFloat = Field(1, strict=False)
    """CPU cores, which is also the number of threads; more than the machine has means all of them."""
    teacher_cpu: PositiveFloat | None = Field(None, strict=False)
    """CPU cores of a teacher in training, where that differs: teachers are few, and leave cores idle."""
    gpu: Annotated[float, Field(ge=0, strict=False)] | None = None
    """GPUs; a fraction lets several cohorts share one, 0 trains on the CPU. By default one, where there is one."""
    gpu_type: str | None = None
    """Train on nodes with this type of GPU only, by Ray's name for it (`A100`, `H100`), where a cluster has several."""
    gpus_per_trial: PositiveInt = 1
    """Processes, each with a GPU where there are any, that share every batch of a cohort; each gets `cpu` cores."""
    workers: NonNegativeInt = 2
    """Processes that decode images for each process of a cohort, where images are streamed from disk."""
    cohort: PositiveInt | Literal["auto"] = "auto"
    """Most trials to train together on one teacher pass; `auto` balances the pass against idle slots."""
    compile: bool = False
    """Compile the networks: faster steps after a first one that takes up to a minute; worth it for long trainings."""
    retries: NonNegativeInt = 1
    """How often a failed trial, or the cohort of a lost worker, is tried again."""
    hung_s: PositiveFloat | None = Field(600, strict=False)
    """Seconds without any progress after which a worker is ended and its cohort goes on from its checkpoint; null for
    never. With Ray alone."""
    deadline_h: PositiveFloat | None = Field(None, strict=False)
    """Most hours that one trial may train, as if it were alone; then it has failed. By default any number."""


class SweepSpec(StrictModel):
    """One question, answered by trials."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the report's folder and the run in MLflow."""
    question: str = ""
    """What the sweep is to find out, in one sentence."""
    data: Data
    pairs: Annotated[tuple[Pair, ...], AfterValidator(_each_once)] = Field(min_length=1, strict=False)
    """Teacher and student networks."""
    teacher: TeacherSpec = TeacherSpec()
    train: Recipe
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name → objective: term → weight, or `{weight, options}`. `{grid: [...]}` in place of a value makes an axis;
    `pairs:` lists what differs for some pairs. `from: methods.yaml` takes the methods of that file, `only: [...]` some.
    """
    seeds: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_each_once)] = Field((0,), min_length=1, strict=False)
    """Each method runs once with each seed."""
    search: Search = Search()
    resources: Resources = Resources()
    storage: str | None = None
    """A folder that all nodes of a cluster reach where they do not share `runs/`: any path that fsspec knows
    (`s3://bucket/folder`). Checkpoints and results are kept there as well."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → deep override of this file, applied before it is checked."""


class Loaded(NamedTuple):
    """A sweep file as it will be run. `otkd.sweep.plan.make` raises its problems, together with those it finds."""

    source: str
    """The file."""
    profile: str
    """The profile that was applied; empty for none."""
    tree: dict[str, Any]
    """The file after profile and overrides."""
    spec: SweepSpec | None
    """Without keys that nobody knows; None where it has other problems of structure."""
    problems: tuple[Problem, ...]
    """What is wrong with the file's structure."""


def load(path: Path, profile: str = AUTO, overrides: Iterable[str] = ()) -> Loaded:
    """Read a sweep file, apply a profile and `--set` overrides, and check its structure.

    Args:
        profile: a name under `profiles:`; `paper` is the file as it stands; `auto` is that on a machine with a GPU
            and `quick`, if the file has it, without.
        overrides: `dotted.path=value`, the value in YAML.

    Raises:
        ConfigError: it is not YAML, there is no such profile, or an override is none.
    """
    tree = _spelled(yamlfile.read(path))
    profiles = _profiles(path, tree)
    applied = _choose_profile(path, profiles, profile)
    if applied in profiles:
        tree = merge(tree, _spelled(profiles[applied]))
    for override in overrides:
        change = parse_override(override)
        _refuse_new_methods(tree, change, path)
        tree = merge(tree, _spelled(change))
    tree.pop("profiles", None)
    problems: list[Problem] = []
    try:
        if "methods" in tree:
            tree["methods"] = methods.resolved(tree["methods"], path)
    except ConfigError as error:
        problems += error.problems
        tree["methods"] = {"student": {"ce": {"weight": 1}}}  # so that the rest can be looked at
    spec, wrong = _checked(tree)
    return Loaded(str(path), applied, tree, spec, (*problems, *wrong))


def _checked(tree: Mapping[str, Any]) -> tuple[SweepSpec | None, list[Problem]]:
    try:
        return SweepSpec.model_validate(tree), []
    except ValidationError as error:
        return readable(SweepSpec, tree), plugins.problems_of(error, SweepSpec)


def readable(kind: Any, given: Any, spare: Callable[[Place], Place] = lambda place: ()) -> Any:
    """A part of a file without the keys that nobody knows, so that the rest can be looked at; None if that is wrong.

    Args:
        kind: what the part is to be, a type.
        spare: a wrong place → what to leave out for it, too; nothing by default.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        places = [
            item["loc"] if item["type"] == "extra_forbidden" else spare(item["loc"])
            for item in error.errors()
            if item["loc"]
        ]
    with suppress(ValidationError):
        return adapter.validate_python(functools.reduce(_without, sorted(places, key=len, reverse=True), given))
    return None


def _without(tree: Any, loc: Place) -> Any:
    """A copy without the key to which a place of pydantic's leads; that also names members of unions on its way."""
    if not loc:
        return tree
    head, *rest = loc
    if isinstance(tree, list | tuple):
        return [_without(item, tuple(rest)) if index == head else item for index, item in enumerate(tree)]
    if head not in tree:
        return _without(tree, tuple(rest))
    if not rest:
        return {key: value for key, value in tree.items() if key != head}
    return {**tree, head: _without(tree[head], tuple(rest))}


def _spelled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose methods have every weight spelled out."""
    return {**tree, "methods": methods.spelled(tree["methods"])} if "methods" in tree else dict(tree)


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU; asked without importing torch."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def _profiles(path: Path, tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    profiles: Any = tree.get("profiles") or {}
    if not isinstance(profiles, dict) or not all(isinstance(below, dict) for below in profiles.values()):
        raise ConfigError(str(path), [Problem("profiles", "a mapping of names to the settings that they override.")])
    return dict(profiles)


def _choose_profile(path: Path, profiles: Mapping[str, Any], profile: str) -> str:
    names: list[str] = [BASE, *(name for name in profiles if name != BASE)]
    if profile == AUTO:
        profile = QUICK if QUICK in profiles and not has_gpu() else BASE
    if profile not in names:
        allowed = ", ".join([AUTO, *names])
        hint = did_you_mean(profile, names)
        raise ConfigError(
            str(path), [Problem("--profile", f"there is no profile {profile!r}; allowed: {allowed}.{hint}")]
        )
    return profile if profile in profiles else ""


def _refuse_new_methods(tree: Mapping[str, Any], change: Mapping[str, Any], path: Path) -> None:
    """An override that names a method which the file lacks is a slip of the pen."""
    known, named = methods.resolved(tree.get("methods"), path), change.get("methods")
    if isinstance(known, Mapping) and isinstance(named, Mapping):
        for method in (method for method in named if method not in (methods.FROM, methods.ONLY, *known)):
            text = f"there is no method {method!r}; there is {', '.join(map(str, known))}."
            raise ConfigError("--set", [Problem(f"methods.{method}", text + did_you_mean(method, map(str, known)))])


def parse_override(text: str) -> dict[str, Any]:
    """The tree that `dotted.path=value` stands for; the value is YAML.

    Raises:
        ConfigError: it is not of that form.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError("--set", [Problem("", f"{text!r} is not of the form dotted.path=value.")])
    tree: Any = yamlfile.parse(value, f"--set {path}")
    if tree == {}:
        raise ConfigError("--set", [Problem(path, "an empty mapping overrides nothing.")])
    for part in reversed(path.split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    return tree
