"""The configurations of a method on a pair of networks: what its settings vary, and what each gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import choice, selection, stats
from otkd.report.choice import METRICS, Metric
from otkd.report.frame import AXIS, axes, budget, configuration, show, students

BEST_VAL = METRICS[names.BEST_VAL_TOP1]


class Grid(NamedTuple):
    """One method on one pair, with the settings that vary."""

    pair: str
    method: str
    values: dict[str, dict[str, Any]]
    """Path of each setting that varies → its values as a person writes them, in the sweep's order → as they are."""
    trials: pd.DataFrame
    """A row per trial: its settings by path, as a person writes them, `variant`, `seed`, `status`, and the columns of
    `measures`."""
    measures: list[Metric]
    """What is known of each trial."""
    metric: Metric
    """The one of them that tables show."""
    budget: str
    """What every trial was given."""

    @property
    def held_out(self) -> bool:
        """Whether `metric` was measured on validation images, so that settings may be chosen by it."""
        return not self.metric.column.startswith(names.TEST)

    @property
    def size(self) -> int:
        """Combinations of the values."""
        return math.prod(map(len, self.values.values()))

    @property
    def words(self) -> dict[str, str]:
        """Path → its last word, where that is clear."""
        last = [path.split(".")[-1] for path in self.values]
        return {path: word if last.count(word) == 1 else path for path, word in zip(self.values, last, strict=True)}

    def has(self, metric: Metric) -> bool:
        """Whether some trial has finished with that figure."""
        return bool(self.trials.loc[self.trials["status"] == "finished", metric.column].notna().any())

    def cells(self, first: str, second: str, metric: Metric) -> dict[tuple[str, str], stats.Cell]:
        """(value of `first`, value of `second`) → the trials of that combination; `first` runs fastest."""
        by_second = {other: self.trials[self.trials[second] == other] for other in self.values[second]}
        return {
            (one, other): stats.cell(rows[rows[first] == one], metric.column)
            for other, rows in by_second.items()
            for one in self.values[first]
        }


def measures(frame: pd.DataFrame) -> list[Metric]:
    """Validation first, since it is what a setting may be chosen by, then the figure that is compared."""
    held_out = [BEST_VAL] if students(frame)[BEST_VAL.column].notna().any() else []
    return list(dict.fromkeys([*held_out, choice.metric(frame)]))


def choosing(frame: pd.DataFrame) -> str:
    """For captions: by which of the `measures` a setting may be chosen."""
    tested = [metric.column.startswith(names.TEST) for metric in measures(frame)]
    if all(tested):
        return "To choose a setting by these test figures would be to tune on the test set."
    return f"Choose a setting by the figures of val{'; those of test are for reading' if any(tested) else ''}."


def setting(value: object) -> str:
    """A value as a person writes it; empty where a method has not this setting."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else show(value)


def grids(frame: pd.DataFrame, info: SweepInfo) -> list[Grid]:
    """The grids of a sweep's methods, and what its searches tried; those with two settings or more that vary."""
    return [grid for grid in [*compared(frame), *_tried(frame, info)] if len(grid.values) > 1]


def compared(frame: pd.DataFrame) -> list[Grid]:
    """The methods of which some setting varies on a pair.

    Tables show the figure that the reader chose; without a choice it is validation accuracy where there is some.
    """
    rows = students(frame)
    columns = {AXIS + path: path for path in axes(frame)}
    own = rows[list(columns)].rename(columns=columns).to_dict("records")
    known, chosen = measures(frame), choice.metric(frame)
    return _of(rows, own, known, known[0] if chosen == choice.DEFAULT else chosen)


def _tried(frame: pd.DataFrame, info: SweepInfo) -> list[Grid]:
    """What a search tried, by validation figures: its candidates have no others."""
    rows = frame[(frame["stage"] == selection.SEARCH) & (frame["teacher"] != "")]
    if rows.empty:
        return []
    settings: Mapping[tuple[str, str, str], Mapping[str, Any]] = {
        (label.key, label.pair, f"{label.method} {configuration(label)}"): label.axes for label in info.labels
    }
    places = zip(rows["key"], rows["pair"], rows["method"] + " " + rows["configuration"], strict=True)
    own = [dict(settings.get(place, {})) for place in places]
    chosen = choice.metric(frame)
    metric = BEST_VAL if chosen.column.startswith(names.TEST) else chosen
    plain = rows.assign(role="student", stage="", **{BEST_VAL.column: rows[selection.VAL]})
    return _of(plain, own, [metric], metric)


def _of(rows: pd.DataFrame, own: list[dict[str, Any]], measures: list[Metric], metric: Metric) -> list[Grid]:
    """The grids of these rows, each with its settings."""
    found, given = [], budget(rows)
    figures = rows[[*selection.STUDY, "variant", "seed", "status", *(one.column for one in measures)]]
    texts = [{path: text for path, value in one.items() if (text := setting(value))} for one in own]
    for (pair, method), group in figures.reset_index(drop=True).groupby(selection.STUDY, sort=False):
        values: dict[str, dict[str, Any]] = {}
        for place in group.index:
            for path, text in texts[place].items():
                values.setdefault(path, {}).setdefault(text, own[place][path])
        values = {path: several for path, several in values.items() if len(several) > 1}
        whole = [place for place in group.index if values.keys() <= texts[place].keys()]
        if values:
            columns = {path: [texts[place][path] for place in whole] for path in values}
            trials = group.loc[whole].assign(**columns)
            found.append(Grid(str(pair), str(method), values, trials, measures, metric, given))
    return found
