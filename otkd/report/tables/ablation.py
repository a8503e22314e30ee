"""One table per `grid:` axis: what a setting does to accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import choice, stats
from otkd.report.frame import AXIS, axes, budget, pairs, students
from otkd.report.grids import choosing, measures, setting
from otkd.report.table import Table, best, grouped, slug

TITLE = "Ablation"
ORDER = 20


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """A table for each axis that has more than one value; none without an axis."""
    tables = [_table(frame, axis) for axis in axes(frame)]
    return [table for table in tables if len(table.frame) > 1]


def _table(frame: pd.DataFrame, axis: str) -> Table:
    rows = students(frame)
    rows = rows.assign(setting=[setting(value) for value in rows[AXIS + axis]])
    rows = rows[rows["setting"] != ""]
    settings = list(dict.fromkeys(rows["setting"]))
    columns: dict[tuple[str, str], Sequence[str]] = {}
    bold: set[tuple[int, int]] = set()
    for (pair, method), group in rows.groupby(["pair", "method"], sort=False):
        for metric in measures(frame):
            cells = [stats.cell(group[group["setting"] == setting], metric.column) for setting in settings]
            summaries = [cell.summary for cell in cells]
            bold |= best(len(columns), summaries, lowest=metric.lower)
            expected, n = stats.header_n(summaries)
            texts = [stats.explain(cell.summary, cell.lacks, expected, metric.digits) for cell in cells]
            columns[f"{method} on {pair}", f"{metric.head}, {n}"] = texts
        columns |= _to_student(frame, group, settings, str(method), str(pair))
    text = grouped(columns, settings, axis)
    caption = _caption(frame, rows, axis)
    return Table(f"ablation-{slug(axis)}", f"{TITLE}: {axis}", caption, text, _data(frame, rows, axis), frozenset(bold))


def _to_student(
    frame: pd.DataFrame, group: pd.DataFrame, settings: list[str], method: str, pair: str
) -> dict[tuple[str, str], list[str]]:
    base, metric = choice.floor(frame, pair), choice.metric(frame)
    if base is None or base in set(group["variant"]):
        return {}
    rows = students(frame)
    floor = stats.cell(rows[(rows["variant"] == base) & (rows["pair"] == pair)], metric.column)
    own = [stats.cell(group[group["setting"] == setting], metric.column) for setting in settings]
    deltas = [stats.paired(cell, floor) for cell in own]
    expected, n = stats.header_n(deltas)
    texts = [stats.explain(delta, "", expected, metric.digits, sign=True) for delta in deltas]
    return {(f"{method} on {pair}", f"Δ {metric.name.split()[0]} to {base}, paired, {n}"): texts}


def _caption(frame: pd.DataFrame, rows: pd.DataFrame, axis: str) -> str:
    which = "best" if choice.metric(frame).lower else "highest"
    bold = f"Bold: {which} mean of a column among those with all n."
    first = choice.first_listed(frame, [choice.floor(frame, pair) for pair in pairs(frame)])
    return f"Rows: values of {axis}. {_others(frame, rows, axis)} {choosing(frame)} {bold} {budget(frame)}{first}"


def _others(frame: pd.DataFrame, rows: pd.DataFrame, axis: str) -> str:
    """What the means go over, and what stays as it is."""
    values = {other: list(dict.fromkeys(map(setting, rows[AXIS + other]))) for other in axes(frame) if other != axis}
    averaged = [f"{other} ({', '.join(filter(None, found))})" for other, found in values.items() if len(found) > 1]
    if averaged:
        return f"Averaged over {' and '.join(averaged)}: n and ± count every such setting and seed. All else is fixed."
    return "All other settings are fixed; ± is the sample standard deviation over n seeds."


def _data(frame: pd.DataFrame, rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    records = []
    for (pair, method, value), group in rows.groupby(["pair", "method", "setting"], sort=False):
        for metric in measures(frame):
            cell = stats.cell(group, metric.column)
            head = {"axis": axis, "pair": pair, "method": method, "value": value, "metric": metric.column}
            records.append({**head, **cell.summary._asdict(), "not_counted": cell.lacks})
    return pd.DataFrame(records)
