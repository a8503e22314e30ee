"""What the engine is held to, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.training.speed import shown
from benchmarks.transport.tables import Table

SAME_LOSS = 0.01
"""How far a loss may be off, relative; under bf16 a folded batch norm shows in the third digit."""
MIB = 1536


class Target(NamedTuple):
    claim: str
    column: str
    """Of any table; each of its figures is held against the bound."""
    bound: float
    most: bool = False
    """Whether the bound is the most allowed instead of the least."""

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.most else value >= self.bound


CPU = (
    Target("one student reaches 0.95 of the plain floor", "/ plain floor", 0.95),
    Target("one student reaches 0.95 of the fast floor", "/ fast floor", 0.95),
    Target("a cohort of six is 1.6 × as fast as its members one by one", "one by one / cohort", 1.6),
    Target("a cohort of six is 2.3 × as fast as the classic loop", "classic / cohort", 2.3),
)
CUDA = (
    Target("one student reaches 0.9 of the plain floor", "/ plain floor", 0.9),
    Target("one student reaches 0.9 of the fast floor", "/ fast floor", 0.9),
    Target("one student is 10 × as fast as the classic loop", "/ classic", 10),
)
EVERYWHERE = (
    Target("the engine and the floor compute the same loss", "loss off by", SAME_LOSS, most=True),
    Target("the first step has ended 5 s after a trial's start", "first_step_s", 5, most=True),
    Target("data load from the cache within 0.5 s", "load_s", 0.5, most=True),
    Target("a trial takes less than 1.5 GiB", "peak_rss_mib", MIB, most=True),
)
MEMORY = "peak_rss_mib"


def verdicts(tables: Sequence[Table], cuda: bool) -> Table:
    """A line for each figure that a target names, those that do not hold first."""
    targets = [*(CUDA if cuda else CPU), *(one for one in EVERYWHERE if not (cuda and one.column == MEMORY))]
    records = [record for target in targets for record in judged(target, tables)]
    kept = sum(record["holds"] == "yes" for record in records)
    records.sort(key=lambda record: record["holds"] == "yes")
    return shown(f"targets: {kept} of {len(records)} hold", records)


def judged(target: Target, tables: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """What was measured for a target."""
    for table in tables:
        for record in table.records:
            value = record.get(target.column)
            if value is not None:
                yield {
                    "target": target.claim,
                    "where": ", ".join([table.title, *words(record)]),
                    "figure": value,
                    "bound": f"{'≤' if target.most else '≥'} {target.bound:g}",
                    "holds": "yes" if target.holds(value) else "no",
                }


def words(record: dict[str, Any]) -> list[str]:
    return [value for value in record.values() if isinstance(value, str)]
