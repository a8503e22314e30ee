"""The sweep file: YAML → profile → overrides → a checked `SweepSpec`. Imports neither torch nor ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from otkd.core import plugins
from otkd.core.config import StrictModel
from otkd.core.errors import ConfigError, OtkdError, Problem, did_you_mean
from otkd.core.trial import Data, Train

AUTO, BASE, QUICK = "auto", "paper", "quick"


class Pair(StrictModel):
    """Who teaches whom."""

    teacher: str
    """The larger network (`otkd list models`)."""
    student: str
    """The network to be deployed."""


class TeacherSpec(StrictModel):
    """How teachers are trained where that differs from the students."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of `train` that differ for teachers, e.g. `{epochs: 30}`."""
    seed: NonNegativeInt = 0
    """Seed of every teacher; all seeds of the students learn from the same one."""


class Search(StrictModel):
    """How configurations are chosen."""

    kind: Literal["grid"] = "grid"
    """`grid`: every combination of the axes in the file."""


class Resources(StrictModel):
    """What one running cohort gets. Cannot change a result."""

    cpu: PositiveFloat = Field(1, strict=False)
    """CPU cores, which is also the number of threads; more than the machine has means all of them."""
    teacher_cpu: PositiveFloat | None = Field(None, strict=False)
    """CPU cores of a teacher in training, where that differs: teachers are few, and leave cores idle."""
    gpu: Annotated[float, Field(ge=0, strict=False)] = 0
    """GPUs; a fraction lets several cohorts share one. Ignored where there is no GPU."""
    cohort: PositiveInt | Literal["auto"] = "auto"
    """Most trials to train together on one teacher pass; `auto` balances the pass against idle slots."""
    retries: NonNegativeInt = 1
    """How often a failed trial is tried again."""


class SweepSpec(StrictModel):
    """One question, answered by trials."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Names the report's folder and the run in MLflow."""
    question: str = ""
    """What the sweep is to find out, in one sentence."""
    data: Data
    pairs: tuple[Pair, ...] = Field(min_length=1, strict=False)
    """Teacher and student networks."""
    teacher: TeacherSpec = TeacherSpec()
    train: Train
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name → objective: term → weight, or `{weight, options}`. `{grid: [...]}` in place of a value makes an axis."""
    seeds: tuple[NonNegativeInt, ...] = Field((0,), min_length=1, strict=False)
    """Each method runs once with each seed."""
    search: Search = Search()
    resources: Resources = Resources()
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → deep override of this file."""


class Loaded(StrictModel):
    """A sweep file as it will be run."""

    source: str
    """The file."""
    profile: str
    """The profile that was applied; empty for none."""
    spec: SweepSpec
    yaml: str
    """The file after profile and overrides."""


def load(path: Path, profile: str = AUTO, overrides: Iterable[str] = ()) -> Loaded:
    """Read a sweep file, apply a profile and `--set` overrides, and check it.

    Args:
        profile: a name under `profiles:`; `paper` is the file as it stands; `auto` is that on a machine with a GPU
            and `quick`, if the file has it, without.
        overrides: `dotted.path=value`, the value in YAML.

    Raises:
        ConfigError: with all that is wrong.
    """
    tree = _read(path)
    applied = _choose_profile(path, tree, profile)
    if applied:
        tree = merge(tree, tree["profiles"][applied])
    for override in overrides:
        tree = merge(tree, _parse_override(override))
    tree.pop("profiles", None) if applied else None
    try:
        spec = SweepSpec.model_validate(tree)
    except ValidationError as error:
        problems = plugins.problems_of(error, SweepSpec)
        raise ConfigError(str(path), problems) from None
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return Loaded(source=str(path), profile=applied, spec=spec, yaml=text)


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `override` laid over it: mappings are merged, everything else is replaced.

    A mapping with another `name` (an optimizer, a solver) replaces the whole, since its options are others.
    """
    if "name" in override and override["name"] != base.get("name"):
        return dict(override)
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA GPU; asked without importing torch."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def _choose_profile(path: Path, tree: Mapping[str, Any], profile: str) -> str:
    profiles = tree.get("profiles") or {}
    names = [BASE, *(name for name in profiles if name != BASE)]
    if profile == AUTO:
        profile = QUICK if QUICK in profiles and not has_gpu() else BASE
    if profile not in names:
        allowed = ", ".join([AUTO, *names])
        hint = did_you_mean(profile, names)
        raise ConfigError(
            str(path), [Problem("--profile", f"there is no profile {profile!r}; allowed: {allowed}.{hint}")]
        )
    return profile if profile in profiles else ""


def _parse_override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError("--set", [Problem("", f"{text!r} is not of the form dotted.path=value.")])
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError("--set", [Problem(path, f"{value!r} is not a YAML value.")]) from None
    for part in reversed(path.split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    return tree


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, and reads `1e-3` as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except FileNotFoundError:
        raise OtkdError(f"there is no file {path}; `otkd list sweeps` names those that ship with otkd.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OtkdError(f"{path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(str(path), [Problem(where, f"{error.problem or 'not YAML'}.")]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [Problem("", "a sweep is a mapping with name, data, pairs, train, methods.")])
    return tree
