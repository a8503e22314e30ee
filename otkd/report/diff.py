"""What differs between two sweeps: their figures, method by method, and what they were run with."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.errors import OtkdError
from otkd.report import choice, formats, frame, inference, stats
from otkd.report.choice import Metric
from otkd.report.inference import UNKNOWN, Interval, brackets
from otkd.report.side_by_side import NEVER
from otkd.report.table import Table
from otkd.report.tables.differences import p_value

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord, TrialRow

PAIRED, UNPAIRED, SAME, NONE = "by seed", "unpaired", "the same trials", "no figure"
"""How a difference was come by."""


class Line(NamedTuple):
    """One method on one pair, in both sweeps."""

    pair: str
    method: str
    left: stats.Cell
    right: stats.Cell
    how: str
    summary: stats.Summary
    """Of right − left; the spread is that of paired differences, and NaN where they are not paired."""
    interval: Interval
    p: float


class Diff(NamedTuple):
    """Everything that is told of two sweeps."""

    left: str
    right: str
    only: dict[str, list[str]]
    """Sweep → `method on pair`, of those that the other has not."""
    figures: Table | None
    """None where they have no method on a pair in common."""
    settings: Table | None
    """Parameters of methods that both have; None where none differs."""
    provenance: Table | None
    """Commit, library versions, devices; None where none differs."""
    yaml: str
    """The sweeps' files as they ran, as a unified diff."""

    @property
    def folder(self) -> str:
        """Name of a folder for it that no sweep's report can have: `~` stands in no sweep's name."""
        return f"{self.left}~{self.right}"


def compare(
    left: tuple[SweepRecord, pd.DataFrame], right: tuple[SweepRecord, pd.DataFrame], metric: Metric = choice.DEFAULT
) -> Diff:
    """What differs from the left sweep to the right.

    Args:
        left, right: records with what `frame.epochs` gives.
        metric: the figure that is compared.

    Raises:
        OtkdError: they are one sweep.
    """
    (old, _), (new, _) = left, right
    if old.run_id == new.run_id:
        raise OtkdError(f"--diff takes two sweeps; both names mean {old.info.name}.")
    frames = [frame.trials(*one) for one in (left, right)]
    frames = [trials.assign(**{metric.column: trials.get(metric.column, math.nan)}) for trials in frames]
    places = [list(dict.fromkeys(_places(trials))) for trials in frames]
    titles = (old.info.name, new.info.name)
    only = {
        title: [f"{method} on {pair}" for pair, method in mine if (pair, method) not in others]
        for title, mine, others in zip(titles, places, places[::-1], strict=True)
    }
    lines = [_line(place, frames[0], frames[1], metric) for place in places[0] if place in places[1]]
    return Diff(
        *titles,
        only,
        _figures(lines, titles, metric, frames) if lines else None,
        _settings(old, new, {place for place in places[0] if place in places[1]}),
        _provenance(old, new),
        _yaml(old, new),
    )


def markdown(found: Diff) -> str:
    """All of it as Markdown."""
    parts = [f"# {formats.md(found.left)} → {formats.md(found.right)}"]
    for sweep, methods in found.only.items():
        if methods:
            parts += [f"Only in {formats.md(sweep)}: {formats.md(', '.join(methods))}."]
    if found.figures is None:
        parts.append("No method on a pair is in both.")
    for table in (found.figures, found.settings, found.provenance):
        if table is not None:
            parts += [f"## {formats.md(table.title)}", formats.markdown(table), formats.md(table.caption)]
    if found.settings is None and found.figures is not None:
        parts.append("The methods that both have were run with the same settings.")
    if found.yaml:
        fence = "`" * (3 + max(map(len, re.findall("`+", found.yaml)), default=0))
        parts += ["## The sweeps as they ran", f"{fence}diff\n{found.yaml}\n{fence}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv(found: Diff) -> str:
    """The figures at full precision; a header alone where nothing is in both."""
    return formats.csv(pd.DataFrame(columns=list(COLUMNS)) if found.figures is None else found.figures.data)


COLUMNS = (
    *("pair", "method", "metric", "left", "right", "left_mean", "left_std", "left_n"),
    *("right_mean", "right_std", "right_n", "how", "mean", "std", "n", "low", "high", "p", "p_holm"),
)
"""Of the CSV."""


def _places(trials: pd.DataFrame) -> Iterable[tuple[str, str]]:
    rows = frame.students(trials)
    return zip(rows["pair"], rows["variant"], strict=True)


def _line(place: tuple[str, str], old: pd.DataFrame, new: pd.DataFrame, metric: Metric) -> Line:
    rows = [_of(trials, place) for trials in (old, new)]
    left, right = (stats.cell(own, metric.column) for own in rows)
    one, other = (set(own.loc[own["status"] == "finished", "key"]) for own in rows)
    if one and one == other and left.summary.n:
        return Line(*place, left, right, SAME, stats.Summary(0.0, math.nan, left.summary.n), UNKNOWN, math.nan)
    if not left.summary.n or not right.summary.n:
        return Line(*place, left, right, NONE, stats.Summary(math.nan, math.nan, 0), UNKNOWN, math.nan)
    common = len(stats.common(left, right)[0])
    if common > 1 or common == min(left.summary.n, right.summary.n):
        found = inference.difference(right, left, metric.lower)
        return Line(*place, left, right, PAIRED, found.summary, found.interval, found.p_t)
    mean, interval, p = inference.unpaired(right, left)
    n = left.summary.n + right.summary.n
    return Line(*place, left, right, UNPAIRED, stats.Summary(mean, math.nan, n), interval, p)


def _of(trials: pd.DataFrame, place: tuple[str, str]) -> pd.DataFrame:
    rows = frame.students(trials)
    return rows[(rows["pair"] == place[0]) & (rows["variant"] == place[1])]


def _figures(lines: list[Line], titles: tuple[str, str], metric: Metric, frames: list[pd.DataFrame]) -> Table:
    data = _data(lines, titles, metric)
    text: dict[str, list[str]] = {
        "pair": [line.pair for line in lines],
        **{
            f"{title}: {metric.head}": [_cell(getattr(line, side), metric) for line in lines]
            for side, title in (("left", titles[0]), ("right", titles[1]))
        },
        f"Δ{metric.points}": [stats.show(line.summary, metric.digits, sign=True) for line in lines],
        "compared": [_how(line) for line in lines],
        "95 %, t": [brackets(line.interval, metric.digits) for line in lines],
        "p": [p_value(line.p) for line in lines],
        "p, Holm": [p_value(value) for value in data["p_holm"]],
    }
    shown = pd.DataFrame(
        text, index=pd.Index([line.method for line in lines], name="method", dtype=object), dtype=object
    )
    tests = inference.family([list(group) for _, group in data.groupby("pair", sort=False)["p"]])
    caption = (
        f"{metric.sentence} Δ: {titles[1]} less {titles[0]}. By seed: over the seeds that both finished, mean ± sample "
        "standard deviation, Student's t interval and paired t-test. Unpaired: difference of the means of all seeds, "
        f"with Welch's interval and test. p: two-sided; Holm's is corrected for the {tests} of a pair. With one seed "
        f"nothing is tested. {titles[0]}: {frame.budget(frames[0])} {titles[1]}: {frame.budget(frames[1])}"
    )
    return Table("diff", f"{metric.name[0].upper()}{metric.name[1:]}, {metric.rule}", caption, shown, data)


def _cell(cell: stats.Cell, metric: Metric) -> str:
    n = f"n = {cell.summary.n}" if cell.summary.n else ""
    notes = "; ".join(filter(None, [n, cell.lacks]))
    figure = stats.show(cell.summary, metric.digits)
    return f"{figure} ({notes})" if notes else figure


def _how(line: Line) -> str:
    return f"{line.how}, n = {line.summary.n}" if line.how == PAIRED else line.how


def _data(lines: list[Line], titles: tuple[str, str], metric: Metric) -> pd.DataFrame:
    records = []
    for pair in dict.fromkeys(line.pair for line in lines):
        group = [line for line in lines if line.pair == pair]
        for line, p_holm in zip(group, inference.holm([line.p for line in group]), strict=True):
            sides = {
                f"{side}_{part}": value
                for side in ("left", "right")
                for part, value in getattr(line, side).summary._asdict().items()
            }
            head = {"pair": pair, "method": line.method, "metric": metric.column, "left": titles[0], "right": titles[1]}
            tail = {"low": line.interval.low, "high": line.interval.high, "p": line.p, "p_holm": p_holm}
            records.append({**head, **sides, "how": line.how, **line.summary._asdict(), **tail})
    order = {(line.pair, line.method): position for position, line in enumerate(lines)}
    records.sort(key=lambda record: order[record["pair"], record["method"]])
    return pd.DataFrame(records, columns=list(COLUMNS))


def _settings(old: SweepRecord, new: SweepRecord, places: set[tuple[str, str]]) -> Table | None:
    """Parameter × sweep with the methods that it differs for; of each method the first trial with a record."""
    one, other = (_params(record, places) for record in (old, new))
    known = [place for place in one if place in other]
    found: dict[tuple[str, str, str], list[str]] = {}
    for place in known:
        left, right = one[place], other[place]
        for name in [*left, *(name for name in right if name not in left)]:
            values = left.get(name, stats.DASH), right.get(name, stats.DASH)
            if values[0] != values[1] and name not in NEVER:
                found.setdefault((name, *values), []).append(place[1])
    methods = list(dict.fromkeys(method for _, method in known))
    rows = [[*place, _whose(own, methods)] for place, own in found.items()]
    caption = "Settings of the methods that both sweeps have, seeds apart; an em dash: not set there."
    heads = ["setting", old.info.name, new.info.name, "methods"]
    return _plain("settings", "Settings that differ", caption, heads, rows)


def _whose(own: list[str], methods: list[str]) -> str:
    named = list(dict.fromkeys(own))
    return "all" if len(named) == len(methods) > 1 else ", ".join(named)


def _params(record: SweepRecord, places: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, str]]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in record.trials:
        place = (row.label.pair, frame.variant(row.label))
        if row.label.role == "student" and place in places and row.params:
            found.setdefault(place, row.params)
    return found


def _provenance(old: SweepRecord, new: SweepRecord) -> Table | None:
    one, other = (_told(record.trials) for record in (old, new))
    fields = [field for field in dict.fromkeys([*one, *other]) if one.get(field) != other.get(field)]
    rows = [[field, _list(one.get(field)), _list(other.get(field))] for field in fields]
    heads = ["what", old.info.name, new.info.name]
    return _plain("provenance", "Code, libraries and machines that differ", "As trials recorded them.", heads, rows)


def _told(trials: Iterable[TrialRow]) -> dict[str, list[str]]:
    """Field → its values, in order."""
    found: dict[str, set[str]] = {}
    for row in trials:
        for tag, value in row.tags.items():
            if tag.startswith(names.TAG_PROVENANCE):
                found.setdefault(tag.removeprefix(names.TAG_PROVENANCE), set()).add(value)
    return {field: sorted(values) for field, values in sorted(found.items())}


def _list(values: list[str] | None) -> str:
    return ", ".join(values) if values else stats.DASH


def _plain(name: str, title: str, caption: str, heads: list[str], rows: list[list[str]]) -> Table | None:
    """A table of texts, its first column the rows' names; None without rows."""
    if not rows:
        return None
    index = pd.Index([row[0] for row in rows], name=heads[0], dtype=object)
    shown = pd.DataFrame([row[1:] for row in rows], index=index, columns=heads[1:], dtype=object)
    return Table(name, title, caption, shown, pd.DataFrame(rows, columns=heads, dtype=object))


def _yaml(old: SweepRecord, new: SweepRecord) -> str:
    one, other = (record.info.yaml.splitlines() for record in (old, new))
    return "\n".join(difflib.unified_diff(one, other, old.info.name, new.info.name, n=2, lineterm=""))
