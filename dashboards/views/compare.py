"""Two methods on one pair, seed by seed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import ask, charts, files, text
from dashboards.source import Sweep
from otkd.core import names
from otkd.report import choice, inference, stats
from otkd.report.choice import METRICS, Metric
from otkd.report.frame import baselines, budget
from otkd.report.tables.differences import p_value

CLASSES = 15
"""Classes that are listed, by how far apart the methods are on them."""


def show(sweep: Sweep) -> None:
    """Choose a pair and two methods; their figures, the difference and what it is worth, curves, classes."""
    if not sweep.pairs:
        text.say("No student is on record yet: there is nothing to compare.")
        return
    first, second, third, fourth = st.columns([3, 3, 3, 2])
    with first:
        pair = ask.one("Pair", sweep.pairs, "compare.pair")
    rows = sweep.students
    rows = rows[rows["pair"] == pair]
    methods = list(dict.fromkeys(rows["variant"]))
    known = baselines(rows)
    base = next((name for name in (known.kd, known.student) if name in methods), methods[0])
    with second:
        left = ask.one("Method", methods, "compare.left", next((name for name in methods[::-1] if name != base), base))
    with third:
        right = ask.one("against", methods, "compare.right", base)
    with fourth:
        weights = ask.one("Measured with", _rules(rows), "compare.rule", format_func=_rule)
    if left == right:
        text.say("Choose two different methods.")
        return
    _figures(rows, left, right, METRICS[names.test(weights, names.TEST_TOP1)])
    text.small(budget(sweep.on([pair])))
    text.head("Learning curves")
    chosen = rows[rows["variant"].isin([left, right])]
    charts.curves(sweep, chosen, "variant", _apart(sweep.colours, left, right), "compare")
    text.small(
        "Mean over the trials that reached an epoch, band ± sample standard deviation over seeds. Training losses are "
        "sums of different terms: compare their shapes, not their heights."
    )
    text.head("By class")
    if st.toggle("Read the accuracy of every class", key="compare.classes"):
        _classes(sweep, rows, left, right)


def _rule(weights: str) -> str:
    """What picked them, in few words."""
    return METRICS[names.test(weights, names.TEST_TOP1)].rule


def _rules(rows: pd.DataFrame) -> list[str]:
    """The weights that some trial was measured with."""
    found = [weights for weights in choice.TESTED if rows[names.test(weights, names.TEST_TOP1)].notna().any()]
    return found or ["last"]


def _figures(rows: pd.DataFrame, left: str, right: str, metric: Metric) -> None:
    cells = {name: stats.cell(rows[rows["variant"] == name], metric.column) for name in (left, right)}
    found = inference.difference(cells[left], cells[right])
    shown = {
        metric.head: [stats.explain(cell.summary, cell.lacks, 0) for cell in cells.values()],
    }
    text.plain(pd.DataFrame(shown, index=pd.Index(list(cells), name="method", dtype=object)), "Accuracy")
    text.head(f"Difference: {left} less {right}")
    text.say(verdict(found))
    if not found.summary.n:
        return
    text.plain(_difference(found, metric.digits), "Difference")
    first, second = stats.common(cells[left], cells[right])
    by_seed = pd.DataFrame({left: first, right: second, "difference": found.by_seed})
    shown_seeds = by_seed.map(stats.number).assign(difference=[stats.number(x, sign=True) for x in found.by_seed])
    shown_seeds.index = pd.Index([f"seed {seed}" for seed in by_seed.index], dtype=object)
    with st.expander(f"Seed by seed (n = {found.summary.n})"):
        text.plain(shown_seeds, "Seed by seed")


def _difference(found: inference.Difference, digits: int) -> pd.DataFrame:
    row = {
        f"Δ points, paired, n = {found.summary.n}": stats.show(found.summary, digits, sign=True),
        "95 %, t": inference.brackets(found.interval, digits),
        "95 %, bootstrap": inference.brackets(found.bootstrap, digits),
        "p, paired t": p_value(found.p_t),
        "p, Wilcoxon": p_value(found.p_wilcoxon),
        "effect d": stats.number(found.effect, 1, sign=True),
        "P(better)": stats.number(found.better),
    }
    return pd.DataFrame([row], index=pd.Index(["difference"], dtype=object))


def verdict(found: inference.Difference) -> str:
    """What may be said of the difference, and what may not."""
    n = found.summary.n
    if n == 0:
        return "They share no seed that both finished, so no paired difference exists."
    size = f"{stats.show(found.summary, sign=True)} points over n = {n} common seed{'s' * (n > 1)}"
    if n == 1:
        return f"{size}: with one seed a difference cannot be told from chance."
    if math.isnan(found.p_t):
        return f"{size}, the same for every seed: no test can be made of it."
    word = "more than chance explains" if found.p_t < inference.ALPHA else "no more than chance may explain"
    return (
        f"{size}; {word}, by the paired t-test at 5 %. The p-values are those of this one comparison: whoever tries "
        "many has to correct them, as the report does in its table of differences."
    )


def _apart(colours: dict[str, str], left: str, right: str) -> dict[str, str]:
    """The report's colours of both; where these are one (more methods than colours), the second is black or grey."""
    same = colours[left] == colours[right]
    return {left: colours[left], right: "#888888" if same else colours[right]}


def _classes(sweep: Sweep, rows: pd.DataFrame, left: str, right: str) -> None:
    """The classes on which the two are furthest apart, over the seeds that have counts of both."""
    found = {name: _top1(sweep, rows[rows["variant"] == name]) for name in (left, right)}
    if found[left].empty or found[right].empty:
        text.say("No counts by class are on record for both: they are kept since a trial's test images are counted.")
        return
    labels = [label for label in found[left] if label in found[right]]
    cells = {label: [stats.Cell(found[name][label].dropna(), "") for name in (left, right)] for label in labels}
    deltas = {label: stats.paired(*pair) for label, pair in cells.items()}
    order = sorted((label for label in labels if deltas[label].n), key=lambda label: -abs(deltas[label].mean))
    named = files.class_names(sweep, rows)
    shown = pd.DataFrame(
        [
            [*(stats.show(cell.summary) for cell in cells[label]), stats.show(deltas[label], sign=True)]
            for label in order[:CLASSES]
        ],
        columns=[f"{left}, top-1 %", f"{right}, top-1 %", f"Δ, paired, n = {max(d.n for d in deltas.values())}"],
        index=pd.Index([named.get(label, str(label)) for label in order[:CLASSES]], name="class", dtype=object),
    )
    text.plain(shown, "By class")
    text.small(
        f"The {len(shown)} of {len(order)} classes on which they are furthest apart, by test images with the last "
        "weights; mean ± sample standard deviation over seeds. Picked for being far apart, such differences read high."
    )


def _top1(sweep: Sweep, rows: pd.DataFrame) -> pd.DataFrame:
    """Seed × class: the share of the class's test images that was recognised, in percent."""
    rows = rows[rows["status"] == "finished"]
    counts = {row["seed"]: files.confusion(sweep, row) for _, row in rows.iterrows()}
    return pd.DataFrame(
        {
            seed: {figures.label: np.nan if figures.top1 is None else figures.top1 for figures in found.by_class()}
            for seed, found in counts.items()
            if found is not None
        }
    ).T
