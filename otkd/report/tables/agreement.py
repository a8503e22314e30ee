"""How far a student does what its teacher does: top-1 agreement on the test images."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.frame import budget, pairs, students, variants
from otkd.report.table import Table, grouped
from otkd.report.tables.accuracy import lines

TITLE = "Agreement with the teacher"
ORDER = 45

AGREEMENT, TOP1 = names.test("last", names.TEST_AGREEMENT), names.test("last", names.TEST_TOP1)


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table; none where no student's agreement is on record."""
    if not students(frame)[AGREEMENT].notna().any():
        return []
    columns: dict[tuple[str, str], Sequence[str]] = {}
    records = []
    for pair in pairs(frame):
        rows = students(frame)
        shared = stats.cells(rows[rows["pair"] == pair], variants(frame), AGREEMENT)
        found = [(line.variant, line.cell, shared[line.variant]) for line in lines(frame, pair, TOP1)]
        expected, n = stats.header_n(cell.summary for _, _, cell in found)
        shares = [stats.explain(cell.summary, cell.lacks, expected) for *_, cell in found]
        columns[pair, f"agreement %, last epoch, {n}"] = shares
        expected, n = stats.header_n(top1.summary for _, top1, _ in found)
        figures = [stats.explain(top1.summary, "", expected) for _, top1, _ in found]
        columns[pair, f"test top-1 %, last epoch, {n}"] = figures
        records += [
            {"pair": pair, "method": name, **cell.summary._asdict(), "top1_mean": top1.summary.mean}
            for name, top1, cell in found
        ]
    text = grouped(columns, variants(frame), "method")
    return [Table("agreement", TITLE, _caption(frame), text, pd.DataFrame(records))]


def _caption(frame: pd.DataFrame) -> str:
    return (
        "Share of test images on which student and teacher name the same class, right or wrong, with the last epoch's "
        "weights; mean ± sample standard deviation over n seeds. High accuracy with low agreement is a student that "
        f"found its own way. {budget(frame)}"
    )
