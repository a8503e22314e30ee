"""What the numbers say, in sentences that claim no more than the numbers carry."""

from __future__ import annotations

import pandas as pd

from otkd.report import stats
from otkd.report.frame import Baselines, baselines, pairs, students
from otkd.report.tables.accuracy import Line, lines, teacher

CONVERGED = "/converged"
"""End of the name of a metric that is a share of converged solves, e.g. `train/<term>/converged`."""
FEW = 5
"""Below so many seeds a spread is itself a guess."""


def sentences(frame: pd.DataFrame) -> list[str]:
    """How much of the sweep there is, what did not converge, which teacher has nothing to teach, then one per pair."""
    weak = (words for pair in pairs(frame) for words in weak_teacher(frame, pair))
    return [progress(frame), *convergence(frame), *weak, *(_pair(frame, pair) for pair in pairs(frame))]


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


def convergence(frame: pd.DataFrame) -> list[str]:
    """One sentence where some trial's last share of converged solves is below 1, whichever term reports it."""
    columns = [name for name in frame if name.endswith(CONVERGED)]
    lowest = frame[columns].min(axis=1).groupby(frame["variant"], sort=False).min()
    lowest = lowest[lowest < 1].sort_values(kind="stable")
    if lowest.empty:
        return []
    shares = ", ".join(f"{_share(share)} for {variant}" for variant, share in lowest.items())
    return [
        f"Not every iterative solve converged: in the last epoch on record the share that did is, at its lowest over "
        f"the trials of a method, {shares}. What these methods trained on is less exact than their settings ask for."
    ]


def weak_teacher(frame: pd.DataFrame, pair: str) -> list[str]:
    """One sentence where the teacher is no better than the student by itself."""
    top, floor = teacher(frame, pair).summary, baselines(frame).student
    alone = [line.cell.summary for line in lines(frame, pair) if line.variant == floor and line.cell.summary.n]
    if not top.n or not alone or top.mean > alone[0].mean:
        return []
    return [
        f"{pair}: the teacher, {_figure(top)}, is no better than {floor}, {_figure(alone[0])}: what is ranked below is "
        "what the losses do to training, not what they hand on. Train the teacher for longer."
    ]


def _share(share: float) -> str:
    """A share below 1 in percent, never rounded up to all of it."""
    return f"{min(round(100 * share, 1), 99.9):g} %"


def _pair(frame: pd.DataFrame, pair: str) -> str:
    every = lines(frame, pair)
    measured = sorted(
        (line for line in every if line.cell.summary.n), key=lambda line: line.cell.summary.mean, reverse=True
    )
    if not measured:
        return f"{pair}: no student has finished, so there is no figure."
    most = max(line.cell.summary.n for line in measured)
    partial = [line for line in measured if line.cell.summary.n < most]
    ranked = [line for line in measured if line.cell.summary.n == most]
    best = ranked[0]
    text = f"{pair}: {best.variant} has the highest mean test accuracy, {_figure(best.cell.summary)}"
    text += "".join(f", {words}" for words in _deltas(best, baselines(frame))) + "."
    text += (
        f" {_lead(best, ranked[1])}" if len(ranked) > 1 else f" No other method has {most} finished to compare it with."
    )
    text += "".join(_left_out(line) for line in partial)
    return text + _without([line for line in every if not line.cell.summary.n])


def _left_out(line: Line) -> str:
    """A method that lost seeds is not ranked: those left may be the lucky ones."""
    return f" Not ranked: {line.variant}, {_figure(line.cell.summary)}; {line.cell.lacks}."


def _without(unmeasured: list[Line]) -> str:
    """The methods that have no mean to be ranked by."""
    words = [f"{line.variant}, no figure ({line.cell.lacks or 'not in the sweep'})" for line in unmeasured]
    return f" Not ranked: {'; '.join(words)}." if words else ""


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
