"""What a table is, before anyone writes it to a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count

import pandas as pd

from otkd.report.stats import Summary


@dataclass(frozen=True)
class Table:
    """One table: what a person reads, and the numbers behind it."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    """Selection rule, n, spread and budget: what the numbers mean."""
    frame: pd.DataFrame
    """Cells as text; the index names the rows; columns have one level, or two (group, column)."""
    data: pd.DataFrame
    """The numbers, tidy: what the CSV holds."""
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    """(row, column) of the best cells."""
    apart: int = 0
    """So many first rows are references (a teacher) and set apart."""
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(row, column) → address that the cell leads to, on the page and in Markdown. Trusted: no user may write one."""

    def flat(self) -> pd.DataFrame:
        """The text frame with one-level column names: `wrn_16_2 ← wrn_40_2, test top-1 %, last epoch, n = 3`."""
        flat = self.frame.copy()
        flat.columns = pd.Index([", ".join(filter(None, self.parts(column))) for column in self.frame.columns])
        return flat

    def parts(self, column: str | tuple[str, str]) -> tuple[str, str]:
        """A column's group (empty for none) and name."""
        return column if isinstance(column, tuple) else ("", column)


def grouped(columns: Mapping[tuple[str, str], Sequence[str]], rows: Sequence[str], name: str) -> pd.DataFrame:
    """A text frame with two-level columns."""
    index = pd.Index(list(rows), name=name, dtype=object)
    frame = pd.DataFrame(
        {position: list(cells) for position, cells in enumerate(columns.values())}, index=index, dtype=object
    )
    frame.columns = pd.MultiIndex.from_tuples(list(columns))
    return frame


def best(column: int, summaries: Sequence[Summary], offset: int = 0, lowest: bool = False) -> set[tuple[int, int]]:
    """Positions of the best mean of a column (all of them on a tie); none where fewer than two can be compared.

    A mean over fewer seeds than others have (some diverged, say) does not compete: those left may be the lucky ones.
    """
    most = max((summary.n for summary in summaries), default=0)
    means = {row: summary.mean for row, summary in enumerate(summaries) if summary.n == most and most}
    if len(means) < 2:
        return set()
    top = min(means.values()) if lowest else max(means.values())
    return {(row + offset, column) for row, mean in means.items() if mean == top}


def distinct(tables: Iterable[Table]) -> list[Table]:
    """The tables, each with a name of its own: of those whose name is one (`ot+kd`, `ot-kd`) the later get a number."""
    found: dict[str, Table] = {}
    for table in tables:
        names = chain([table.name], (f"{table.name}-{place}" for place in count(2)))
        name = next(one for one in names if one not in found)
        found[name] = replace(table, name=name)
    return list(found.values())


def slug(text: str) -> str:
    """A file name of any text."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "table"
