"""How far the networks' confidence is from their accuracy: expected calibration error on the test images."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from otkd.core import names
from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.choice import FIGURES, METRICS
from otkd.report.frame import budget, pairs, students, variants
from otkd.report.table import Table, best, grouped
from otkd.report.tables.accuracy import explained, lines, teacher

TITLE = "Calibration"
ORDER = 46

SHOWN = (names.TEST_ECE, names.TEST_LOSS)


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table; none where no student's calibration is on record."""
    if not students(frame)[names.test("last", names.TEST_ECE)].notna().any():
        return []
    columns: dict[tuple[str, str], Sequence[str]] = {}
    bold: set[tuple[int, int]] = set()
    records: list[dict[str, object]] = []
    for pair in pairs(frame):
        for figure in SHOWN:
            metric = METRICS[names.test("last", figure)]
            top = teacher(frame, pair, metric.column)
            cells = {line.variant: line.cell for line in lines(frame, pair, metric.column)}
            summaries = [cell.summary for cell in cells.values()]
            bold |= best(len(columns), summaries, offset=1, lowest=True)
            expected, n = stats.header_n(summaries)
            columns[pair, f"{metric.head}, {n}"] = [
                explained(cell, expected, FIGURES[figure].digits) for cell in (top, *cells.values())
            ]
            records += [
                {"pair": pair, "method": name, "metric": metric.column, **cell.summary._asdict()}
                for name, cell in {"teacher": top, **cells}.items()
            ]
    text = grouped(columns, ["teacher", *variants(frame)], "method")
    caption = _caption(frame)
    return [Table("calibration", TITLE, caption, text, pd.DataFrame(records), frozenset(bold), apart=1)]


def _caption(frame: pd.DataFrame) -> str:
    return (
        "Calibration error: expected calibration error of the class named first, |accuracy − mean confidence| in 15 "
        "equal intervals of confidence, weighted by their images. Loss: cross-entropy in nats. Both on test images, "
        "last epoch's weights, temperature 1, which scaling would lower; mean ± sample standard deviation over "
        f"n seeds; bold: lowest mean among those with all n seeds. {budget(frame)}"
    )
