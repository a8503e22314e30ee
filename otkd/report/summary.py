"""What the numbers say, in sentences that claim no more than the numbers carry."""

from __future__ import annotations

import pandas as pd

from otkd.report import stats
from otkd.report.frame import Baselines, baselines, pairs, students
from otkd.report.tables.accuracy import Line, lines

FEW = 5
"""Below so many seeds a spread is itself a guess."""


def sentences(frame: pd.DataFrame) -> list[str]:
    """How much of the sweep there is, then one statement per pair."""
    return [progress(frame), *(_pair(frame, pair) for pair in pairs(frame))]


def progress(frame: pd.DataFrame) -> str:
    """How many students finished, and what became of the others."""
    counts = students(frame)["status"].value_counts(sort=False)
    total, finished = int(counts.sum()), int(counts.get("finished", 0))
    if not total:
        return "The record of this sweep holds no student yet: there is nothing to compare."
    if finished == total:
        return f"All {total} student trials finished." if total > 1 else "The one student trial finished."
    others = ", ".join(f"{count} {status}" for status, count in counts.items() if status != "finished")
    open_ones = any(counts.get(status, 0) for status in ("running", "missing"))
    return f"{finished} of {total} student trials finished ({others})." + (
        " The figures are preliminary." if open_ones else ""
    )


def _pair(frame: pd.DataFrame, pair: str) -> str:
    ranked = sorted(lines(frame, pair), key=lambda line: line.cell.summary.mean, reverse=True)
    most = max(line.cell.summary.n for line in ranked)
    if not most:
        return f"{pair}: no student has finished, so there is no figure."
    partial = [line for line in ranked if 0 < line.cell.summary.n < most]
    ranked = [line for line in ranked if line.cell.summary.n == most]
    best = ranked[0]
    text = f"{pair}: {best.variant} has the highest mean test accuracy, {_figure(best.cell.summary)}"
    text += "".join(f", {words}" for words in _deltas(best, baselines(frame))) + "."
    text += (
        f" {_lead(best, ranked[1])}" if len(ranked) > 1 else f" No other method has {most} finished to compare it with."
    )
    return text + "".join(_left_out(line) for line in partial)


def _left_out(line: Line) -> str:
    """A method that lost seeds is not ranked: those left may be the lucky ones."""
    return f" Not ranked: {line.variant}, {_figure(line.cell.summary)}; {line.cell.lacks}."


def _figure(summary: stats.Summary) -> str:
    return f"{stats.show(summary)} % (n = {summary.n})"


def _deltas(best: Line, known: Baselines) -> list[str]:
    bases = dict.fromkeys(base for base in (known.kd, known.student) if base in best.to)
    return [f"{stats.show(best.to[base], sign=True)} over {base}" for base in bases if base and best.to[base].n]


def _lead(best: Line, second: Line) -> str:
    """Whether the distance to the next method is more than the seeds' own spread."""
    lead = stats.paired(best.cell, second.cell)
    if lead.n == 0:
        next_one = f"{second.variant} ({_figure(second.cell.summary)})"
        return f"It shares no seed with the next, {next_one}, so no paired difference exists."
    distance = f"lead over the next, {second.variant}, is {stats.show(lead, sign=True)} points (paired, n = {lead.n})"
    if lead.n == 1:
        return f"Its {distance}: with one seed a difference cannot be told from chance."
    verdict = (
        "no larger than its own spread over seeds: within noise"
        if stats.within_noise(lead)
        else "larger than its spread"
    )
    few = f"; with {lead.n} seeds the spread itself is a rough guess" if lead.n < FEW else ""
    return f"Its {distance}, {verdict}{few}."
