"""Which trials train together: enough in one cohort to share the teacher, few enough to keep every slot busy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from otkd.core.trial import Trial

SHARED = 0.6
"""What a cohort shares (teacher pass, batches), in units of one member's own work: 0.5 in the sweep `demo`, 0.7 in
`cifar100` with profile `quick`, by the records' `time/teacher_s`, `time/data_s` and `time/own_s`."""


def cohorts(trials: Sequence[Trial], slots: int, most: int | Literal["auto"] = "auto") -> list[list[Trial]]:
    """Group trials that differ only in their objective, and cut the groups to size.

    Args:
        slots: how many cohorts can run at the same time.
        most: largest size of a cohort; `auto` takes the size with the shortest expected run.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.cohort, []).append(trial)
    largest = max(map(len, groups.values()), default=1)
    size = most if isinstance(most, int) else min(range(largest, 0, -1), key=lambda n: _makespan(groups, slots, n))
    return [part for group in groups.values() for part in _cut(group, size)]


def _makespan(groups: dict[str, list[Trial]], slots: int, size: int) -> float:
    """Expected time when cohorts of at most `size` are dealt to the slots, longest first."""
    lengths = sorted((len(part) + SHARED for group in groups.values() for part in _cut(group, size)), reverse=True)
    busy = [0.0] * slots
    for length in lengths:
        busy[busy.index(min(busy))] += length
    return max(busy)


def _cut(group: list[Trial], size: int) -> list[list[Trial]]:
    """Parts of nearly equal length, none longer than `size`."""
    parts = math.ceil(len(group) / size)
    bounds = [round(index * len(group) / parts) for index in range(parts + 1)]
    return [group[begin:end] for begin, end in itertools.pairwise(bounds)]
