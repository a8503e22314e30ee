"""Asynchronous successive halving (asha) beside the whole grid: the search of `sweeps/tune_transport.yaml`, smaller.

Of each interval that the sweep searches the grid has a few values, in the middle of equal parts (of its logarithm where
it is drawn so), and of each choice every value. Once all of its trials are trained to their end, as a plain sweep does
it; once the same trials, of the same teacher and seeds, are the candidates of a search with the sweep's scheduler. A
trial's curve is the same both ways, so nothing but what was stopped makes a difference. Epochs are counted from the
journals. All of it goes through the command line, on Ray, each student on a core.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from benchmarks.training.speed import shown
from benchmarks.training.targets import Target
from benchmarks.transport.tables import Table
from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep import paths
from otkd.sweep.journal import journal_file
from otkd.sweep.plan import Plan, make
from otkd.sweep.ranges import Choice, Interval
from otkd.sweep.results import result_of
from otkd.sweep.search import Search
from otkd.sweep.spec import load
from otkd.sweep.tried import Tried

ROOT = Path(__file__).resolve().parents[2]
SWEEP, PROFILE = ROOT / "sweeps" / "tune_transport.yaml", "quick"
GRID, ASHA = "grid", "asha"


class Size(NamedTuple):
    """How much of the sweep is run."""

    points: dict[str, int]
    """Method → values of each interval."""
    overrides: tuple[str, ...]
    """What else is smaller than in the sweep's quick profile."""


FULL = Size({"kd": 3, "ot": 3}, ("data.limit=1500", "data.val=600"))
QUICK = Size({"kd": 2, "ot": 1}, ("data.limit=400", "data.val=200", "teacher.train.epochs=2", "train.epochs=9"))

LEGEND = """\
best: highest val top-1 % of a configuration that was trained to its end (best epoch, mean over seeds). ±: binomial
standard error of the grid's, for so many validation images; that of the choice of seed comes on top. behind: how much
less asha found, over ±. epochs: on record, of students. s: from the first student's first epoch to the last one's last;
the grid trains cohorts that share a teacher's pass, a search each configuration by itself. What asha compares a
configuration with depends on what has come as far by then, so its epochs vary a little from run to run."""

TARGETS = (
    Target("asha's best is within one standard error of the grid's", "behind / ±", 1, most=True),
    Target("asha takes a third of the grid's epochs", "epochs / grid", 0.333, most=True),
)


class Found(NamedTuple):
    """What one way has cost and brought."""

    configurations: Counter[str]
    """By method, as all that follows."""
    best: dict[str, float]
    epochs: Counter[str]
    seconds: float


def described(size: Size) -> dict[str, str]:
    """What is trained, for the head of a report."""
    tree = searched(size)
    data, (pair,), epochs = tree["data"], tree["pairs"], tree["train"]["epochs"]
    return {
        "data": f"{data['name']}, {data['limit']} images, {data['val']} of them for validation",
        "students": f"{pair['student']} ← {pair['teacher']}, {epochs} epochs, seeds {tree['seeds']}",
        "scheduler": ", ".join(f"{name} {value}" for name, value in tree["search"]["scheduler"].items()),
    }


def measure(folder: Path, data_dir: Path, size: Size) -> Iterator[Table]:
    """Both ways from an empty folder, then what they say of each other."""
    grid, asha = Layout(folder / GRID), Layout(folder / ASHA)
    whole = run(smaller(size), grid, data_dir)
    for teacher in whole.teachers:
        shutil.copytree(grid.trial(teacher.trial.key).path, asha.trial(teacher.trial.key).path)
    found = {GRID: read(whole, grid), ASHA: read(run(searched(size), asha, data_dir), asha)}
    images = int(whole.spec.data.val)
    yield shown("by method", [beside(method, found, images) for method in found[GRID].best])
    yield shown("in all", [spent(way, found) for way in found])


def smaller(size: Size) -> dict[str, Any]:
    """The sweep as a plain grid, of the methods for which it searches something."""
    tree = dict(load(SWEEP, PROFILE, size.overrides).tree)
    found, methods = Search.model_validate(tree["search"]), dict[str, Any]()
    for path, range_ in found.space.items():
        place = paths.place(path, tree["methods"])
        terms = methods.setdefault(place.method, json.loads(json.dumps(tree["methods"][place.method])))
        *above, last = place.keys
        for key in above:
            terms = terms[key]
        terms[last] = {"grid": values(range_, size.points[place.method])}
    return tree | {"methods": methods, "search": {"kind": "grid"}}


def searched(size: Size) -> dict[str, Any]:
    """The same grid under the scheduler of the sweep."""
    scheduler = load(SWEEP, PROFILE, size.overrides).tree["search"]["scheduler"]
    return smaller(size) | {"search": {"kind": "grid", "scheduler": scheduler}}


def values(range_: Interval | Choice, points: int) -> list[Any]:
    """What the grid has of a range."""
    if isinstance(range_, Choice):
        return list(range_.values)
    return [range_.at((index + 0.5) / points) for index in range(points)]


def run(tree: Mapping[str, Any], layout: Layout, data_dir: Path) -> Plan:
    """Have `otkd sweep` do it.

    Raises:
        RuntimeError: it has failed, with what it said.
    """
    file = layout.root / "sweep.yaml"
    layout.root.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(tree), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-c", "from otkd.cli import main; main()", "sweep", str(file)]
    options = ["--runs", str(layout.root), "--data-dir", str(data_dir), "--device", "cpu"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"the sweep failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return make(load(file))


def read(plan: Plan, layout: Layout) -> Found:
    """What the records of a sweep that has ended say."""
    whole = Tried(plan, layout).whole
    methods = {item.trial.key: item.label.method for item in whole.students}
    epochs = [event for event in journal(plan, layout) if event["event"] == "epoch" and event["key"] in methods]
    begins = (event["time"] - event["metrics"][names.EPOCH_S] - event["metrics"][names.EVAL_S] for event in epochs)
    return Found(
        configurations=Counter(method for method, _ in configurations(whole)),
        best=best(whole, layout),
        epochs=Counter(methods[event["key"]] for event in epochs),
        seconds=max(event["time"] for event in epochs) - min(begins),
    )


def journal(plan: Plan, layout: Layout) -> list[dict[str, Any]]:
    lines = journal_file(layout, plan.info.name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def configurations(plan: Plan) -> dict[tuple[str, str], list[Trial]]:
    """Method and settings → the trials, one a seed."""
    found = defaultdict[tuple[str, str], list[Trial]](list)
    for trial, label in plan.students:
        found[label.method, json.dumps(label.axes)].append(trial)
    return found


def best(plan: Plan, layout: Layout) -> dict[str, float]:
    """By method the highest mean over seeds, of configurations whose seeds have all finished."""
    found = dict[str, float]()
    for (method, _), trials in configurations(plan).items():
        results = [result_of(trial, layout) for trial in trials]
        values = [r.metrics[names.BEST_VAL_TOP1] for r in results if r is not None and r.status == "finished"]
        if len(values) == len(trials):
            found[method] = max(fmean(values), found.get(method, 0.0))
    return found


def beside(method: str, found: Mapping[str, Found], images: int) -> dict[str, Any]:
    """A line of the first table.

    Args:
        images: for validation.
    """
    grid, asha = found[GRID], found[ASHA]
    error = standard_error(grid.best[method], images)
    return {
        "method": method,
        "configurations": str(grid.configurations[method]),
        "grid: best": grid.best[method],
        "±": error,
        "asha: best": asha.best[method],
        "behind / ±": (grid.best[method] - asha.best[method]) / error,
        "grid: epochs": str(grid.epochs[method]),
        "asha: epochs": str(asha.epochs[method]),
    }


def standard_error(percent: float, images: int) -> float:
    """Of a share that was counted on so many images, in percentage points."""
    return math.sqrt(percent * (100 - percent) / images)


def spent(way: str, found: Mapping[str, Found]) -> dict[str, Any]:
    """A line of the second table."""
    own, epochs = found[way], found[way].epochs.total()
    ratio = epochs / found[GRID].epochs.total() if way != GRID else None
    return {"way": way, "epochs": str(epochs), "epochs / grid": ratio, "s": own.seconds}
