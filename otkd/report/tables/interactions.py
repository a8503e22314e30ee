"""What two settings give together: a cell for every combination of their values."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.grids import Grid, grids
from otkd.report.table import Table, best, slug

TITLE = "Two settings at once"
ORDER = 21

LEAST = 0.5
"""Share of the combinations that must have been tried: draws of a random search make no table."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """A table per method, pair of networks and two settings that vary; none where settings vary one at a time."""
    found = grids(frame, info)
    several = len({grid.pair for grid in found}) > 1
    return [
        _table(grid, first, second, several)
        for grid in found
        for first, second in combinations(grid.values, 2)
        if len(grid.trials[[first, second]].drop_duplicates()) >= LEAST * _size(grid, first, second)
    ]


def _size(grid: Grid, first: str, second: str) -> int:
    return len(grid.values[first]) * len(grid.values[second])


def _table(grid: Grid, first: str, second: str, several: bool) -> Table:
    cells = grid.cells(first, second, grid.metric)
    expected, n = stats.header_n(cell.summary for cell in cells.values())
    down, digits = list(grid.values[first]), grid.metric.digits
    columns = {
        f"{grid.words[second]} = {other}": [_text(cells[one, other], expected, digits) for one in down]
        for other in grid.values[second]
    }
    text = pd.DataFrame(columns, index=pd.Index(down, name=grid.words[first], dtype=object), dtype=object)
    place = f"{grid.method} on {grid.pair}"
    name = f"interactions-{slug(grid.method)}-{slug(first)}-{slug(second)}" + (f"-{slug(grid.pair)}" if several else "")
    title = f"{grid.words[first]} × {grid.words[second]}, {place}"
    data = pd.DataFrame([_record(grid, first, second, *place) for place in cells.items()])
    return Table(name, title, _caption(grid, first, second, n), text, data, _best(grid, first, cells))


def _text(cell: stats.Cell, expected: int, digits: int) -> str:
    if not cell.lacks and not cell.summary.n:
        return f"{stats.DASH} (not tried)"
    return stats.explain(cell.summary, cell.lacks, expected, digits)


def _best(grid: Grid, first: str, cells: dict[tuple[str, str], stats.Cell]) -> frozenset[tuple[int, int]]:
    """Where the best mean of the whole table stands, among the cells that lost no trial."""
    top = best(0, [cell.summary for cell in cells.values()], lowest=grid.metric.lower)
    rows = len(grid.values[first])
    return frozenset((place % rows, place // rows) for place, _ in top)


def _caption(grid: Grid, first: str, second: str, n: str) -> str:
    others = [f"{path} ({', '.join(texts)})" for path, texts in grid.values.items() if path not in (first, second)]
    over = f"every seed and value of {' and '.join(others)}" if others else "seeds"
    choose = (
        "A combination may be chosen by these figures."
        if grid.held_out
        else "To choose a combination by these test figures would be to tune on the test set."
    )
    spread = "mean ± sample standard deviation" if n not in ("n = 0", "n = 1") else "one figure each, without a spread"
    unit = ", in" + grid.metric.suffix if grid.metric.unit else ""
    return (
        f"{grid.metric.sentence} Values of {first} (rows) and {second} (columns) of {grid.method} on "
        f"{grid.pair}{unit}: {spread}, over {over}, {n}. {choose} Bold: the {grid.metric.best} mean among those with "
        f"all n. {grid.budget}"
    )


def _record(grid: Grid, first: str, second: str, place: tuple[str, str], cell: stats.Cell) -> dict[str, object]:
    head = {"pair": grid.pair, "method": grid.method, "metric": grid.metric.column}
    where = {"first": first, "first_value": place[0], "second": second, "second_value": place[1]}
    return {**head, **where, **cell.summary._asdict(), "not_counted": cell.lacks}
