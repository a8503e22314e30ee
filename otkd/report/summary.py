"""What the numbers say, in sentences that claim no more than the numbers carry."""

from __future__ import annotations

import math

import pandas as pd

from otkd.report import choice, selection, stats
from otkd.report.choice import Metric
from otkd.report.frame import baselines, pairs, seeds, students
from otkd.report.inference import ALPHA
from otkd.report.tables.accuracy import Line, lines, teacher
from otkd.report.tables.differences import Line as Difference
from otkd.report.tables.differences import compared

CONVERGED = "/converged"
"""End of the name of a metric that is a share of converged solves, e.g. `train/<term>/converged`."""
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
    metric, floor = choice.metric(frame), baselines(frame).student
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
    found = {pair: compared(frame, pair) for pair in pairs(frame)} if seeds(frame) > 1 else {}
    known = dict.fromkeys(base for groups in found.values() for base, group in groups.items() if group)
    against = {base: [line for groups in found.values() for line in groups.get(base, [])] for base in known}
    return [_verdicts(base, group, choice.metric(frame)) for base, group in against.items() if _tested(group)]


def _verdicts(base: str, found: list[Difference], metric: Metric) -> str:
    by_method: dict[str, list[Difference]] = {}
    for line in found:
        by_method.setdefault(line.variant, []).append(line)
    told = {name: [line for line in group if line.p_holm < ALPHA] for name, group in by_method.items()}
    silent = [name for name, group in told.items() if not group]
    better = [_on_pairs(name, group, by_method[name], metric, 1) for name, group in told.items()]
    worse = [_on_pairs(name, group, by_method[name], metric, -1) for name, group in told.items()]
    parts = {
        "better": list(filter(None, better)),
        "worse": list(filter(None, worse)),
        "within noise": [name for name in silent if _tested(by_method[name])],
        "cannot be tested": [name for name in silent if not _tested(by_method[name])],
    }
    words = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in parts.items() if names)
    return f"Against {base}, by the paired t-test, Holm-corrected over the methods of a pair, at 5 %, {words}."


def _tested(group: list[Difference]) -> bool:
    """Whether any of the differences could be tested."""
    return any(math.isfinite(line.p_holm) for line in group)


def _on_pairs(name: str, told: list[Difference], every: list[Difference], metric: Metric, sign: int) -> str:
    """`ot by 0.60 points on 3 of 4 pairs`; empty where it is so on none."""
    gains = [sign * metric.sign * line.found.summary.mean for line in told]
    means = [gain for gain in gains if gain > 0]
    if not means:
        return ""
    where = f" on {len(means)} of {len(every)} pairs" if len(every) > 1 else ""
    return f"{name} by {stats.number(sum(means) / len(means), metric.digits)}{metric.points}{where}"


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
    best = ranked[0]
    text = f"{pair}: {best.variant} has the {metric.best} mean {_what(metric)}, {_figure(best.cell.summary, metric)}"
    text += "".join(f", {words}" for words in _deltas(best, choice.against(frame), metric)) + "."
    text += (
        f" {_lead(best, ranked[1], metric)}"
        if len(ranked) > 1
        else f" No other method has {most} finished to compare it with."
    )
    text += "".join(_left_out(line, metric) for line in partial)
    return text + _without([line for line in every if not line.cell.summary.n])


def _left_out(line: Line, metric: Metric) -> str:
    """A method that lost seeds is not ranked: those left may be the lucky ones."""
    return f" Not ranked: {line.variant}, {_figure(line.cell.summary, metric)}; {line.cell.lacks}."


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
