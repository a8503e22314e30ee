"""What the numbers say, in sentences that claim no more than the numbers carry."""

from __future__ import annotations

import math
from statistics import fmean

import pandas as pd

from otkd.core import names as metrics
from otkd.report import choice, selection, stats
from otkd.report.choice import Metric
from otkd.report.frame import baselines, pairs, seeds, students
from otkd.report.inference import ALPHA, family
from otkd.report.tables.accuracy import Line, lines, teacher
from otkd.report.tables.differences import Line as Difference
from otkd.report.tables.differences import compared

CONVERGED = "/converged"
"""End of the name of a metric that is a share of converged solves, e.g. `train/<term>/converged`."""
VERDICTS = BETTER, WORSE, NOISE, UNTESTED = "better", "worse", "within noise", "cannot be tested"
"""What the paired t-test may say of a difference."""
FEW = 5
"""Below so many seeds a spread is itself a guess."""


def sentences(frame: pd.DataFrame) -> list[str]:
    """How much of the sweep there is, what did not converge, which teacher has nothing to teach, then what was found.

    That is one sentence per pair of networks, and one per baseline on what chance does not explain.
    """
    weak = (words for pair in pairs(frame) for words in weak_teacher(frame, pair))
    return [
        *selection.progress(frame),
        progress(frame),
        *convergence(frame),
        *weak,
        *(_pair(frame, pair) for pair in pairs(frame)),
        *beyond_chance(frame),
    ]


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
    rows = students(frame)
    lowest = rows[columns].min(axis=1).groupby(rows["variant"], sort=False).min()
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
    metric, floor = choice.metric(frame), baselines(frame[frame["pair"] == pair]).student
    if not metric.column.endswith((metrics.TEST_TOP1, metrics.TEST_TOP5)):
        return []  # a better teacher may be worse calibrated, say
    top = teacher(frame, pair).summary
    alone = [line.cell.summary for line in lines(frame, pair) if line.variant == floor and line.cell.summary.n]
    if not top.n or not alone or metric.sign * top.mean > metric.sign * alone[0].mean:
        return []
    return [
        f"{pair}: the teacher, {_figure(top, metric)}, is no better than {floor}, {_figure(alone[0], metric)}: what is "
        "ranked below is what the losses do to training, not what they hand on. Train the teacher for longer."
    ]


def beyond_chance(frame: pd.DataFrame) -> list[str]:
    """One sentence per baseline: who is better, who is worse, and of whom neither can be said; none with one seed."""
    found = [compared(frame, pair) for pair in pairs(frame)] if seeds(frame) > 1 else []
    known = dict.fromkeys(base for groups in found for base in groups)
    against = {base: [groups[base] for groups in found if groups.get(base)] for base in known}
    return [
        _verdicts(base, groups, len(found), choice.metric(frame))
        for base, groups in against.items()
        if any(_verdict(line, choice.metric(frame)) != UNTESTED for group in groups for line in group)
    ]


def _verdicts(base: str, groups: list[list[Difference]], n_pairs: int, metric: Metric) -> str:
    """What is true of each method on the pairs on which it can be compared, one group of differences a pair."""
    by_method: dict[str, list[Difference]] = {}
    for line in (line for group in groups for line in group):
        by_method.setdefault(line.variant, []).append(line)
    parts: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for name, every in by_method.items():
        for verdict, told in parts.items():
            own = [line for line in every if _verdict(line, metric) == verdict]
            if own:
                told.append(_on_pairs(name, own, len(every), verdict, metric))
    words = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in parts.items() if names)
    where = f" on {len(groups)} of {n_pairs} pairs" if len(groups) < n_pairs else ""
    tests = family([[line.p_holm for line in group] for group in groups])
    return f"Against {base}{where}, by the paired t-test, Holm-corrected over the {tests} of a pair, at 5 %, {words}."


def _verdict(line: Difference, metric: Metric) -> str:
    if math.isnan(line.p_holm):
        return UNTESTED
    if line.p_holm >= ALPHA:
        return NOISE
    return BETTER if metric.sign * line.found.summary.mean > 0 else WORSE


def _on_pairs(name: str, told: list[Difference], n_pairs: int, verdict: str, metric: Metric) -> str:
    """`ot by 0.60 points on 3 of 4 pairs`; of what is no difference no size, and no count where it is so on all."""
    where = f" on {len(told)} of {n_pairs} pairs"
    if verdict in (NOISE, UNTESTED):
        return name + where * (len(told) < n_pairs)
    size = fmean(abs(line.found.summary.mean) for line in told)
    return f"{name} by {stats.number(size, metric.digits)}{metric.points}{where * (n_pairs > 1)}"


def _share(share: float) -> str:
    """A share below 1 in percent, never rounded up to all of it."""
    return f"{min(round(100 * share, 1), 99.9):g} %"


def _pair(frame: pd.DataFrame, pair: str) -> str:
    every, metric = lines(frame, pair), choice.metric(frame)
    measured = sorted(
        (line for line in every if line.cell.summary.n),
        key=lambda line: line.cell.summary.mean,
        reverse=not metric.lower,
    )
    if not measured:
        return f"{pair}: no student has finished, so there is no figure."
    most = max(line.cell.summary.n for line in measured)
    partial = [line for line in measured if line.cell.summary.n < most]
    ranked = [line for line in measured if line.cell.summary.n == most]
    first = [line for line in ranked if line.cell.summary.mean == ranked[0].cell.summary.mean]
    text = _tie(first, metric) if len(first) > 1 else _leader(ranked, choice.against(frame, pair), metric)
    text = f"{pair}: {text}" + "".join(_left_out(line, most, metric) for line in partial)
    return text + _without([line for line in every if not line.cell.summary.n])


def _leader(ranked: list[Line], known: dict[str, str], metric: Metric) -> str:
    """Who has the best mean, over whom, and by how much."""
    best, n = ranked[0], ranked[0].cell.summary.n
    text = f"{best.variant} has the {metric.best} mean {_what(metric)}, {_figure(best.cell.summary, metric)}"
    text += "".join(f", {words}" for words in _deltas(best, known, metric))
    if len(ranked) > 1:
        return f"{text}. {_lead(best, ranked[1], metric)}"
    return f"{text}. No other method has {n} finished to compare it with."


def _tie(first: list[Line], metric: Metric) -> str:
    """Methods of the same best mean: none leads."""
    *names, last = (line.variant for line in first)
    *figures, figure = (_figure(line.cell.summary, metric) for line in first)
    return (
        f"{', '.join(names)} and {last} have the same {metric.best} mean {_what(metric)}, {', '.join(figures)} and "
        f"{figure}: none of them leads."
    )


def _left_out(line: Line, most: int, metric: Metric) -> str:
    """A method with fewer seeds than others is not ranked: those that it has may be the lucky ones."""
    reason = line.cell.lacks or f"others have n = {most}"
    return f" Not ranked: {line.variant}, {_figure(line.cell.summary, metric)}; {reason}."


def _without(unmeasured: list[Line]) -> str:
    """The methods that have no mean to be ranked by."""
    words = [f"{line.variant}, no figure ({line.cell.lacks or 'not in the sweep'})" for line in unmeasured]
    return f" Not ranked: {'; '.join(words)}." if words else ""


def _figure(summary: stats.Summary, metric: Metric) -> str:
    return " ".join(filter(None, [stats.show(summary, metric.digits), metric.unit, f"(n = {summary.n})"]))


def _what(metric: Metric) -> str:
    """`test accuracy`, as all say, with the last weights; else the figure with its rule."""
    return "test accuracy" if metric == choice.DEFAULT else metric.by


def _by(difference: stats.Summary, metric: Metric) -> str:
    return f"{stats.show(difference, metric.digits, sign=True)}{metric.points}"


def _deltas(best: Line, known: dict[str, str], metric: Metric) -> list[str]:
    bases = dict.fromkeys(base for base in reversed(known.values()) if base in best.to)
    return [f"{stats.show(best.to[base], metric.digits, sign=True)} over {base}" for base in bases if best.to[base].n]


def _lead(best: Line, second: Line, metric: Metric) -> str:
    """Whether the distance to the next method is more than the seeds' own spread."""
    lead = stats.paired(best.cell, second.cell)
    if lead.n == 0:
        next_one = f"{second.variant} ({_figure(second.cell.summary, metric)})"
        return f"It shares no seed with the next, {next_one}, so no paired difference exists."
    distance = f"lead over the next, {second.variant}, is {_by(lead, metric)} (paired, n = {lead.n})"
    if lead.n == 1:
        return f"Its {distance}: with one seed a difference cannot be told from chance."
    verdict = "no larger than its own spread over seeds" if stats.within_spread(lead) else "larger than its spread"
    few = f"; with {lead.n} seeds the spread itself is a rough guess" if lead.n < FEW else ""
    return f"Its {distance}, {verdict}{few}."
