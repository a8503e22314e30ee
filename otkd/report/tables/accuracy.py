"""Methods × pairs: test accuracy, and its difference to the student alone and to KD, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import choice, stats
from otkd.report.choice import METRICS, Metric
from otkd.report.frame import Baselines, budget, has_val, pairs, seeds, students, teachers, variants
from otkd.report.table import Table, best, grouped

TITLE = "Test accuracy"
ORDER = 10


class Line(NamedTuple):
    """One method on one pair."""

    variant: str
    cell: stats.Cell
    to: dict[str, stats.Summary]
    """Baseline's variant → paired difference to it."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """The table of the figure that is compared and, where images were held out, that with the weights best on them."""
    if not variants(frame):
        return []
    chosen, other = choice.metric(frame), METRICS[names.test("best", names.TEST_TOP1)]
    both = chosen == choice.DEFAULT and has_val(frame) and frame[other.column].notna().any()
    return [_table(frame, metric) for metric in ([chosen, other] if both else [chosen])]


def lines(frame: pd.DataFrame, pair: str, column: str | None = None) -> list[Line]:
    """Every method of the sweep on `pair`, in the sweep's order, by `column` or by the figure that is compared."""
    column = column or choice.metric(frame).column
    rows = frame.loc[(frame["role"] == "student") & (frame["pair"] == pair), ["variant", "seed", "status", column]]
    cells = stats.cells(rows, variants(frame), column)
    known = list(dict.fromkeys(choice.against(frame, pair).values()))
    return [
        Line(name, cell, {base: stats.paired(cell, cells[base]) for base in known if base != name})
        for name, cell in cells.items()
    ]


def teacher(frame: pd.DataFrame, pair: str, column: str | None = None) -> stats.Cell:
    """The teacher's accuracy on `pair`: from its own trials, or else as its students recorded it."""
    column = column or choice.metric(frame).column
    rows = students(frame)
    rows = rows[rows["pair"] == pair]
    own = teachers(frame, pair)
    if len(own):
        return stats.cell(own, column)
    told = rows.get(names.TEACHER + column, pd.Series(dtype=float)).dropna().drop_duplicates().reset_index(drop=True)
    return stats.Cell(told, "")


def _table(frame: pd.DataFrame, metric: Metric) -> Table:
    columns: dict[tuple[str, str], Sequence[str]] = {}
    bold: set[tuple[int, int]] = set()
    for pair in pairs(frame):
        found, top = lines(frame, pair, metric.column), teacher(frame, pair, metric.column)
        summaries = [line.cell.summary for line in found]
        bold |= best(len(columns), summaries, offset=1, lowest=metric.lower)
        expected, n = stats.header_n(summaries)
        cells = [explained(line.cell, expected, metric.digits) for line in found]
        columns[pair, f"{metric.head}, {n}"] = [explained(top, expected, metric.digits), *cells]
        columns |= _differences(pair, found, choice.against(frame, pair), expected, metric.digits)
    rows = ["teacher", *variants(frame)]
    suffix = "" if metric == choice.metric(frame) else "-best"
    title = f"{_what(metric)}, {metric.rule}"
    caption = _caption(frame, metric)
    text = grouped(columns, rows, "method")
    return Table(f"accuracy{suffix}", title, caption, text, _data(frame, metric), frozenset(bold), apart=1)


def title(frame: pd.DataFrame) -> str:
    """What this part of the report is called."""
    return _what(choice.metric(frame))


def _what(metric: Metric) -> str:
    """`Test accuracy` for top-1, as all say; else the figure's own name."""
    name = metric.name[0].upper() + metric.name[1:]
    return TITLE if metric.name == choice.DEFAULT.name else name


def _differences(
    pair: str, found: list[Line], known: dict[str, str], expected: int, digits: int
) -> dict[tuple[str, str], list[str]]:
    return {
        (pair, f"Δ to {base}, paired"): ["", *(_difference(line, base, expected, digits) for line in found)]
        for base in known.values()
    }


def _difference(line: Line, base: str, expected: int, digits: int) -> str:
    if line.variant == base:
        return "baseline"
    return stats.explain(line.to[base], "", expected, digits, sign=True)


def explained(cell: stats.Cell, expected: int, digits: int) -> str:
    """A whole cell: the figure, or why there is none."""
    if not cell.lacks and cell.summary.n == 0:
        return f"{stats.DASH} (not in the sweep)"
    return stats.explain(cell.summary, cell.lacks, expected, digits)


def _caption(frame: pd.DataFrame, metric: Metric) -> str:
    spread = (
        "Mean ± sample standard deviation over n seeds." if seeds(frame) > 1 else "One seed: no spread can be given."
    )
    bold = f"Bold: {metric.best} mean among those with all n seeds."
    first = choice.first_listed(frame, choice.every(frame))
    return f"{metric.measured} {spread} {_deltas(frame)} {bold} {budget(frame)}{first}"


def _deltas(frame: pd.DataFrame) -> str:
    """What the differences are, and to which methods."""
    known = {pair: choice.against(frame, pair) for pair in pairs(frame)}
    roles = list(dict.fromkeys(role for found in known.values() for role in found))
    lacking = [role for role in Baselines._fields if role not in roles and choice.CHOSEN not in roles]
    words = [_role(role, known) for role in roles]
    words += [f"no {role} baseline in this sweep with a record" for role in lacking]
    delta = "Δ is the difference over the seeds that both finished" if roles else "No Δ"
    return f"{delta} ({'; '.join(words)})."


def _role(role: str, known: dict[str, dict[str, str]]) -> str:
    """`kd baseline: kd`; sweeps side by side may have another on another pair, or none."""
    there = list(dict.fromkeys(found[role] for found in known.values() if role in found))
    without = [pair for pair, found in known.items() if role not in found]
    return f"{role} baseline: {' or '.join(there)}" + (f", none on {', '.join(without)}" if without else "")


def _data(frame: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    records = []
    for pair in pairs(frame):
        known, top = choice.against(frame, pair), teacher(frame, pair, metric.column)
        records.append(_record(pair, "teacher", metric, top))
        for line in lines(frame, pair, metric.column):
            record = _record(pair, line.variant, metric, line.cell)
            for role, name in known.items():
                delta = line.to.get(name)
                if delta is not None:
                    record |= {f"delta_{role}_{part}": value for part, value in delta._asdict().items()}
            records.append(record)
    return pd.DataFrame(records)


def _record(pair: str, variant: str, metric: Metric, cell: stats.Cell) -> dict[str, object]:
    numbers = cell.summary._asdict()
    return {"pair": pair, "method": variant, "metric": metric.column, "selection": metric.rule} | {
        **numbers,
        "not_counted": cell.lacks,
    }
