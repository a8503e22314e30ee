"""What a run goes through, section by section."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.transport.bench import Bench, excuse
from benchmarks.transport.measure import Effort, alternate, floor, ratio, spread, step
from benchmarks.transport.ours import configured, otkd
from benchmarks.transport.problems import FIXED_ITERS, MAX_ITERS, TOLERANCE, Problem, Setting, random_problem
from benchmarks.transport.subjects import SUBJECTS, Subject
from benchmarks.transport.tables import Table, plain, row
from benchmarks.transport.training import training_step
from otkd.core import plugins
from otkd.ot.clouds import Clouds, transport

FULL = Effort(repeats=20, budget_ms=200, slow_ms=2000)
QUICK = Effort(repeats=3, budget_ms=50, slow_ms=200)


@dataclass(frozen=True)
class Plan:
    """What a run goes through, and how thoroughly."""

    device: torch.device
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    epsilons: tuple[float, ...] = (0.05, 0.01)
    effort: Effort = FULL
    step_repeats: int = 25
    batch: int = 64
    """Problems in the batched and in the class-space case."""
    deadline: float = math.inf
    """When no new problem is begun any more, on the clock of `time.monotonic`."""


def quick(device: torch.device, sizes: tuple[int, ...], widths: tuple[int, ...], deadline: float) -> Plan:
    """Few repeats and no patience."""
    return Plan(device, sizes, widths, (0.05,), QUICK, step_repeats=3, batch=2, deadline=deadline)


def problems(plan: Plan, widths: Sequence[int]) -> list[Problem]:
    """By size, so that what is too slow for a small problem is known before the large ones."""
    make = partial(random_problem, device=plan.device)
    many = plan.batch
    found = [make(f"{size} × {size}, d = {width}", size, width) for size in plan.sizes for width in widths]
    found.append(make(f"{many} of 64 × 64, d = 64", many, 64, 64))
    found.append(make(f"{many} histograms on 100 classes", 100, 64, weights=many))
    return sorted(found, key=lambda problem: problem.entries)


def comparisons(subject: Subject, plan: Plan) -> Iterator[tuple[str, list[Setting], tuple[int, ...]]]:
    """What a subject goes through: a title, its settings, and the widths it is worth."""
    if not subject.entropic:
        yield "", [Setting()], plan.widths
        return
    to_tolerance = [Setting(epsilon, TOLERANCE, MAX_ITERS) for epsilon in plan.epsilons]
    yield f"until the marginals' L1 error is below {TOLERANCE:g}", to_tolerance, plan.widths
    fixed = [Setting(epsilon, None, FIXED_ITERS) for epsilon in plan.epsilons]
    yield f"{FIXED_ITERS} iterations each", fixed, plan.widths[:1]


def subject_section(name: str, plan: Plan) -> Iterator[Table]:
    """One solver beside its peers."""
    if name not in plugins.names("ot"):
        yield Table(f"{name}: otkd has no such solver", [])
        return
    subject, bench = SUBJECTS[name], Bench(plan.device, plan.effort)
    for title, settings, widths in comparisons(subject, plan):
        asked = [(problem, setting) for problem in problems(plan, widths) for setting in settings]
        cells = [bench.cell(name, *pair) for pair in asked if time.monotonic() < plan.deadline]
        left = len(asked) - len(cells)
        note = f"{left} of {len(asked)} rows are left out: the time was up." if left else ""
        yield Table(f"{name}, {title}".rstrip(", "), [row(cell) for cell in cells], cells, note)


def every_section(plan: Plan) -> Iterator[Table]:
    """All solvers as they come, on one problem of each size."""
    records = [record for size in plan.sizes if size <= 256 for record in every_solver(size, plan)]
    yield plain("every solver, its defaults, d = 64", sorted(records, key=lambda record: str(record["solver"])))


def every_solver(size: int, plan: Plan) -> Iterator[dict[str, Any]]:
    problem = random_problem(f"{size} × {size}, d = 64", size, 64, device=plan.device)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(step, partial(otkd, name=name), problem, Setting()) for name in plugins.names("ot")
    }
    results = {name: solved(name, problem) for name in calls}
    working = {name: call for name, call in calls.items() if not isinstance(results[name], str)}
    times = alternate({**working, "floor": floor(problem)}, plan.effort, plan.device)
    floor_ms = statistics.median(times["floor"])
    for name, result in results.items():
        yield every_record(name, size, result, times.get(name, []), floor_ms)


def solved(name: str, problem: Problem) -> Any:
    """A solver's result, which also warms up, or in words why there is none."""
    try:
        return transport(Clouds(problem.x_BND, problem.y_BND), None, None, configured(name, Setting()))
    except Exception as error:  # a plug-in may raise what it likes, and the others shall be measured
        return excuse(error)


def every_record(name: str, size: int, result: Any, times: Sequence[float], floor_ms: float) -> dict[str, Any]:
    failed = isinstance(result, str)
    ms = None if failed else statistics.median(times)
    return {
        "solver": name,
        "n": size,
        "ms": ms,
        "±": None if failed else spread(times),
        "floor ms": floor_ms,
        "ms / floor": ratio(ms, floor_ms),
        "converged": result if failed else ("yes" if bool(result.converged_B.all()) else "no"),
        "iterations": None if failed else result.n_iters,
    }


def step_section(plan: Plan) -> Iterator[Table]:
    """What a transport term costs a training step."""
    records = training_step(plan.device, plan.step_repeats)
    yield plain("a training step, wrn_16_2 ← wrn_40_2, 64 images of 3 × 32 × 32", records)


SECTIONS: dict[str, Callable[[Plan], Iterator[Table]]] = {
    "step": step_section,
    "every": every_section,
    **{name: partial(subject_section, name) for name in SUBJECTS},
}
