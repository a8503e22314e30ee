"""What the solvers are held to, and where they keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.transport.tables import Table, number
from benchmarks.transport.training import BASE

SINKHORN, METHODS = "sinkhorn", "POT sinkhorn2"
SMALL = 256


class Figure(NamedTuple):
    """One cell under a target; None where otkd has no answer that counts."""

    where: str
    value: float | None
    peer: str = ""
    """Who the figure is against."""
    bound: float | None = None
    """What it would be for a code that took no longer than the floor."""


class Target(NamedTuple):
    claim: str
    least: float
    figures: Callable[[Sequence[Table]], Iterator[Figure]]
    most: bool = False
    """Whether `least` is the most allowed instead."""

    def holds(self, figure: Figure) -> bool:
        if figure.value is None:
            return False
        return figure.value <= self.least if self.most else figure.value >= self.least


def against_methods(tables: Sequence[Table]) -> Iterator[Figure]:
    """The fastest method of `ot.sinkhorn2` that gives the gradient, over otkd's sinkhorn."""
    for where, cell in cells(tables):
        rivals = [peer for peer in cell["peers"] if peer["family"] == METHODS and peer["backward"]]
        arrived = [peer for peer in rivals if peer["ms"] is not None and peer["reached"]]
        if arrived and cell["solver"] == SINKHORN:
            yield figure(where, cell, min(arrived, key=lambda peer: float(peer["ms"])))


def against_all(tables: Sequence[Table], sinkhorn: bool, largest: int | None = None) -> Iterator[Figure]:
    """The fastest peer that gives the gradient, over otkd's sinkhorn or over its other solvers."""
    for where, cell in cells(tables):
        fastest = next((peer for peer in cell["peers"] if peer["name"] == cell["fastest"]), None)
        if fastest and (cell["solver"] == SINKHORN) == sinkhorn and (largest is None or cell["n"] <= largest):
            yield figure(where, cell, fastest)


def figure(where: str, cell: Mapping[str, Any], peer: Mapping[str, Any]) -> Figure:
    value = peer["ms"] / cell["otkd"]["ms"] if counts(cell["otkd"]) else None
    return Figure(where, value, peer["name"], peer["ms"] / cell["floor_ms"])


def against_kd(tables: Sequence[Table]) -> Iterator[Figure]:
    """A training step with a transport term, over one with Hinton's distillation."""
    for table in tables:
        for record in table.records:
            if "objective" in record and record["objective"] != BASE:
                yield Figure(record["objective"], record["/ kd"], BASE)


def cells(tables: Sequence[Table]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every comparison with a name for it."""
    for table in tables:
        for cell in table.records:
            if "peers" in cell:
                epsilon = "" if cell["epsilon"] is None else f", ε = {cell['epsilon']:g}"
                fixed = f", {cell['iters']} its" if cell["iters"] and not cell["tolerance"] else ""
                yield f"{cell['solver']}: {cell['problem']}{epsilon}{fixed}", cell


def counts(code: Mapping[str, Any]) -> bool:
    return code["ms"] is not None and code["reached"]


TARGETS = (
    Target("sinkhorn is at least 5 × as fast as the fastest sinkhorn2 method", 5, against_methods),
    Target(
        f"sinkhorn is at least 3 × as fast as the fastest peer, n ≤ {SMALL}",
        3,
        partial(against_all, sinkhorn=True, largest=SMALL),
    ),
    Target("sinkhorn is never slower than the fastest peer", 1, partial(against_all, sinkhorn=True)),
    Target("no other solver is slower than its fastest peer", 1, partial(against_all, sinkhorn=False)),
    Target("a training step takes at most 1.05 × that with kd", 1.05, against_kd, most=True),
)


def verdicts(tables: Sequence[Table]) -> Iterator[Table]:
    """A table for each target that something was measured for: its cells, those that do not hold first."""
    for target in TARGETS:
        found = sorted(target.figures(tables), key=lambda figure: (target.holds(figure), figure.value or 0.0))
        if found:
            kept = sum(map(target.holds, found))
            title = f"target: {target.claim}: {kept} of {len(found)} hold"
            records = [{**figure._asdict(), "holds": target.holds(figure)} for figure in found]
            yield Table(title, [verdict(record) for record in records], records)


def verdict(record: Mapping[str, Any]) -> dict[str, str]:
    value = "otkd ✗" if record["value"] is None else number(record["value"])
    return {
        "where": record["where"],
        "figure": value,
        "at the floor": number(record["bound"]),
        "against": record["peer"],
        "holds": "yes" if record["holds"] else "no",
    }
