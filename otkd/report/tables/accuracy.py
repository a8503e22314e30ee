"""Methods × pairs: test accuracy, and its difference to the student alone and to KD, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.frame import Baselines, baselines, budget, has_val, pairs, seeds, students, teachers, variants
from otkd.report.table import Table, best, grouped

TITLE = "Test accuracy"
ORDER = 10

RULES = {"last": "last epoch", "best": "best epoch on val"}
"""Weights → the selection rule in words."""


class Line(NamedTuple):
    """One method on one pair."""

    variant: str
    cell: stats.Cell
    to: dict[str, stats.Summary]
    """Baseline's variant → paired difference to it."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """The table with the last weights and, where images were held out, the one with the best on validation."""
    if not variants(frame):
        return []
    measured = has_val(frame) and frame[names.test("best", names.TEST_TOP1)].notna().any()
    return [_table(frame, weights) for weights in (["last", "best"] if measured else ["last"])]


def lines(frame: pd.DataFrame, pair: str, weights: str = "last") -> list[Line]:
    """Every method of the sweep on `pair`, in the sweep's order."""
    column = names.test(weights, names.TEST_TOP1)
    rows = frame.loc[(frame["role"] == "student") & (frame["pair"] == pair), ["variant", "seed", "status", column]]
    cells = {name: stats.cell(rows[rows["variant"] == name], column) for name in variants(frame)}
    known = [name for name in baselines(frame) if name]
    return [
        Line(name, cell, {base: stats.paired(cell, cells[base]) for base in known if base != name})
        for name, cell in cells.items()
    ]


def teacher(frame: pd.DataFrame, pair: str, weights: str = "last") -> stats.Cell:
    """The teacher's accuracy on `pair`: from its own trials, or else as its students recorded it."""
    column = names.test(weights, names.TEST_TOP1)
    rows = students(frame)
    rows = rows[rows["pair"] == pair]
    own = teachers(frame, pair)
    if len(own):
        return stats.cell(own, column)
    told = rows[names.TEACHER + column].dropna().drop_duplicates().reset_index(drop=True)
    return stats.Cell(told, "")


def _table(frame: pd.DataFrame, weights: str) -> Table:
    columns: dict[tuple[str, str], Sequence[str]] = {}
    bold: set[tuple[int, int]] = set()
    for pair in pairs(frame):
        found, top = lines(frame, pair, weights), teacher(frame, pair, weights)
        summaries = [line.cell.summary for line in found]
        bold |= best(len(columns), summaries, offset=1)
        expected, n = stats.header_n(summaries)
        cells = [_text(line.cell, expected) for line in found]
        columns[pair, f"test top-1 %, {RULES[weights]}, {n}"] = [_text(top, expected), *cells]
        columns |= _differences(pair, found, baselines(frame), expected)
    rows = ["teacher", *variants(frame)]
    suffix = "" if weights == "last" else f"-{weights}"
    title = f"{TITLE}, {RULES[weights]}"
    caption = _caption(frame, weights)
    text = grouped(columns, rows, "method")
    return Table(f"accuracy{suffix}", title, caption, text, _data(frame, weights), frozenset(bold), apart=1)


def _differences(pair: str, found: list[Line], known: Baselines, expected: int) -> dict[tuple[str, str], list[str]]:
    return {
        (pair, f"Δ to {base}, paired"): ["", *(_difference(line, base, expected) for line in found)]
        for base in known
        if base is not None
    }


def _difference(line: Line, base: str, expected: int) -> str:
    if line.variant == base:
        return "baseline"
    return stats.explain(line.to[base], "", expected, sign=True)


def _text(cell: stats.Cell, expected: int) -> str:
    if not cell.lacks and cell.summary.n == 0:
        return f"{stats.DASH} (not in the sweep)"
    return stats.explain(cell.summary, cell.lacks, expected)


def _caption(frame: pd.DataFrame, weights: str) -> str:
    selection = {
        "last": "Measured once, with the weights of the last epoch: none were picked by looking at test images.",
        "best": "Measured once, with the weights that were best on held-out validation images.",
    }[weights]
    spread = (
        "Mean ± sample standard deviation over n seeds." if seeds(frame) > 1 else "One seed: no spread can be given."
    )
    named = [f"{role} baseline: {name}" for role, name in baselines(frame)._asdict().items() if name]
    lacking = [role for role, name in baselines(frame)._asdict().items() if not name]
    delta = "Δ is the difference over the seeds that both finished" if named else "No Δ"
    words = [*named, *(f"no {role} baseline in this sweep with a record" for role in lacking)]
    bold = "Bold: highest mean among those with all n seeds."
    return f"{selection} {spread} {delta} ({'; '.join(words)}). {bold} {budget(frame)}"


def _data(frame: pd.DataFrame, weights: str) -> pd.DataFrame:
    known = {role: name for role, name in baselines(frame)._asdict().items() if name}
    records = []
    for pair in pairs(frame):
        top = teacher(frame, pair, weights)
        records.append(_record(pair, "teacher", weights, top))
        for line in lines(frame, pair, weights):
            record = _record(pair, line.variant, weights, line.cell)
            for role, name in known.items():
                delta = line.to.get(name)
                if delta is not None:
                    record |= {f"delta_{role}_{part}": value for part, value in delta._asdict().items()}
            records.append(record)
    return pd.DataFrame(records)


def _record(pair: str, variant: str, weights: str, cell: stats.Cell) -> dict[str, object]:
    numbers = cell.summary._asdict()
    return {"pair": pair, "method": variant, "selection": RULES[weights], **numbers, "not_counted": cell.lacks}
