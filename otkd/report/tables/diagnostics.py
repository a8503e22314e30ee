"""What the terms of an objective tell of themselves, e.g. whether transport solves converged and how plans look."""

from __future__ import annotations

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import stats
from otkd.report.frame import pairs, students, variants
from otkd.report.table import Table

TITLE = "Inside the losses"
ORDER = 60

PREFIX = "train/"
VALUES = ("raw", "weighted")
"""Parts of a term's metrics that are its value and no diagnostic."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """One table per term that has diagnostics."""
    return [_table(frame, term, columns) for term, columns in _terms(frame).items()]


def _terms(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Term → the metrics in which some student tells something other than its value."""
    found: dict[str, list[str]] = {}
    for name in students(frame).dropna(axis=1, how="all"):
        _, term, part = (*name.split("/"), "", "")[:3] if name.startswith(PREFIX) else ("", "", "")
        if part and part not in VALUES:
            found.setdefault(term, []).append(name)
    return found


def _table(frame: pd.DataFrame, term: str, columns: list[str]) -> Table:
    rows = students(frame).dropna(subset=columns, how="all")
    several = len(pairs(frame)) > 1
    order = [(pair, name) for pair in pairs(frame) for name in variants(frame)]
    groups = {place: group for place, group in rows.groupby(["pair", "variant"], sort=False) if place in order}
    found, records = {}, []
    for pair, name in (place for place in order if place in groups):
        summaries = {column: stats.cell(groups[pair, name], column).summary for column in columns}
        found[f"{name}, {pair}" if several else name] = summaries
        means = {column.split("/")[-1]: summary.mean for column, summary in summaries.items()}
        records.append({"pair": pair, "method": name, "n": max(s.n for s in summaries.values()), **means})
    text = pd.DataFrame(index=pd.Index(list(found), name="method", dtype=object))
    for column in columns:
        expected, n = stats.header_n(summaries[column] for summaries in found.values())
        head = column.split("/")[-1].replace("_", " ")
        text[f"{head}, last epoch, {n}"] = [_figure(summaries[column], expected) for summaries in found.values()]
    return Table(f"diagnostics-{term}", f"{TITLE}: {term}", _caption(term), text.astype(object), pd.DataFrame(records))


def _figure(summary: stats.Summary, expected: int) -> str:
    """Three significant figures: these quantities have no scale in common."""
    if not summary.n:
        return stats.DASH
    note = "" if summary.n == expected else f" (n = {summary.n})"
    return f"{summary.mean:.3g}".replace("-", "−") + note


def _caption(term: str) -> str:
    return (
        f"What {term} reports of itself, averaged over the batches of the last epoch, then over finished seeds. Of a "
        "transport loss: converged is the share of solves that reached their tolerance; marginal error, by how much "
        "the plan misses the given weights; alignment, the share of mass that joins an image with itself."
    )
