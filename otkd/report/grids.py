"""The configurations of a method on a pair of networks, where two settings or more vary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import selection
from otkd.report.frame import budget, configuration, show, students

VALUE = "value"
"""Column of `Grid.trials`."""
VAL, TEST = "val top-1, best epoch", "test top-1, last epoch"
"""Selection rules."""
Settings = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""Trial key, pair and configuration → path of a setting → its value; sweeps may give one trial several labels."""


class Grid(NamedTuple):
    """One method on one pair."""

    pair: str
    method: str
    values: dict[str, list[str]]
    """Path of each setting that varies → its values as a person writes them, in the order of the sweep."""
    trials: pd.DataFrame
    """A row per trial: its settings by path, `seed`, `status`, VALUE (in percent; NaN where there is none)."""
    by: str
    """What VALUE is."""
    held_out: bool
    """Whether VALUE was measured on validation images, so that settings may be chosen by it."""
    budget: str
    """What every trial was given."""

    @property
    def size(self) -> int:
        """Combinations of the values."""
        return math.prod(map(len, self.values.values()))

    @property
    def words(self) -> dict[str, str]:
        """Path → its last word, where that is clear."""
        last = [path.split(".")[-1] for path in self.values]
        return {path: word if last.count(word) == 1 else path for path, word in zip(self.values, last, strict=True)}


def grids(frame: pd.DataFrame, info: SweepInfo) -> list[Grid]:
    """The grids of a sweep's methods, and what its searches tried; those with two settings or more that vary."""
    compared = students(frame)
    compared = compared[compared["stage"] == ""]
    tried = frame[(frame["stage"] == selection.SEARCH) & (frame["teacher"] != "")]
    settings = {(label.key, label.pair, f"{label.method} {configuration(label)}"): label.axes for label in info.labels}
    if compared[names.BEST_VAL_TOP1].notna().any():
        found = _of(compared, names.BEST_VAL_TOP1, settings, VAL, True)
    else:
        found = _of(compared, names.test("last", names.TEST_TOP1), settings, TEST, False)
    plain = tried.assign(role="student", stage="")
    return found + (_of(plain, selection.VAL, settings, VAL, True) if len(tried) else [])


def _places(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    titles = rows["method"] + " " + rows["configuration"]
    return list(zip(rows["key"], rows["pair"], titles, strict=True))


def _of(rows: pd.DataFrame, column: str, settings: Settings, by: str, held_out: bool) -> list[Grid]:
    found = []
    for (pair, method), group in rows.groupby(selection.STUDY, sort=False):
        own = [{path: show(value) for path, value in settings.get(place, {}).items()} for place in _places(group)]
        paths = dict.fromkeys(path for one in own for path in one)
        values = {path: list(dict.fromkeys(one.get(path, "") for one in own)) for path in paths}
        values = {path: texts for path, texts in values.items() if len(texts) > 1}
        if len(values) > 1:
            trials = pd.DataFrame([{path: one.get(path, "") for path in values} for one in own], dtype=object)
            figures = group[["seed", "status"]].reset_index(drop=True).assign(**{VALUE: group[column].to_numpy()})
            found.append(Grid(str(pair), str(method), values, trials.join(figures), by, held_out, budget(rows)))
    return found
