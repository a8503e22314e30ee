"""How far the sweep is, and what can be said of it already."""

from __future__ import annotations

import time
from collections import Counter

import pandas as pd
import streamlit as st

from dashboards import charts, text
from dashboards.source import Sweep
from otkd.report import selection, summary
from otkd.report.frame import PARAM

STATES = ("running", "missing", "diverged", "failed", "pruned")
WORDS = {"missing": "to come", "running": "in training"}
"""State of what has no result → how it is shown, where that is not its name."""
MOST = 20
"""Trials in training that are listed."""


def show(sweep: Sweep) -> None:
    """Question, progress, findings, and what is in training."""
    begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(sweep.started))
    text.say(sweep.info.question)
    text.small(" · ".join(filter(None, [f"data: {sweep.info.dataset}", sweep.info.profile, f"last begun {begun}"])))
    if len(sweep.frame):
        st.progress(float((sweep.frame["status"] == "finished").mean()))
    _running(sweep)
    text.head("What the numbers say")
    _findings(sweep)
    _curves(sweep)
    with st.expander("The sweep: its notes, and its file"):
        for note in sweep.info.notes:
            text.say(note)
        st.code(sweep.info.yaml, language="yaml")


def standing(frame: pd.DataFrame) -> str:
    """Whether the sweep is over, and how far it is, over all trials: teachers and candidates of a search too."""
    counts = Counter(frame["status"])
    parts = [f"{counts[state]:,} {WORDS.get(state, state)}" for state in STATES if counts[state]]
    far = ", ".join([f"{counts['finished']:,} of {len(frame):,} trials finished", *parts])
    if counts["running"]:
        return f"Running: {far}."
    if counts["missing"]:
        return (
            f"Not over, and nothing is in training: {far}. Where its command has ended, the same one goes on with it."
        )
    more = " unless the search tries more" if selection.searched(frame) else ""
    return f"Over{more}: {far}."


def _findings(sweep: Sweep) -> None:
    """The report's sentences; of a large sweep, whose tests take long, only when they are asked for."""
    if sweep.large:
        text.say(summary.progress(sweep.frame))
        if not st.toggle("Test every method against the baselines, which takes long in a sweep of this size"):
            return
    with st.spinner("Working out what the numbers say …"):
        for sentence in sweep.sentences:
            text.say(sentence)


def _running(sweep: Sweep) -> None:
    rows = sweep.frame[sweep.frame["status"] == "running"]
    if rows.empty:
        return
    text.head("In training" if len(rows) <= MOST else f"In training: {MOST} of {len(rows):,}")
    rows = rows.head(MOST)
    last = sweep.curves(rows["key"]).groupby("key", observed=True)["epoch"].max()
    epochs = [last.get(key, 0) for key in rows["key"]]
    planned = rows[PARAM + "train.epochs"].fillna("?")
    shown = pd.DataFrame(
        {
            "method": list(rows["variant"]),
            "pair": list(rows["pair"]),
            "seed": list(rows["seed"]),
            "epoch": [f"{done} of {all_}" for done, all_ in zip(epochs, planned, strict=True)],
        }
    )
    st.dataframe(shown, hide_index=True, width="stretch")


def _curves(sweep: Sweep) -> None:
    """Learning curves of one pair, of as many methods as can be told apart."""
    rows = sweep.students
    if rows.empty:
        return
    pair = sweep.pairs[0]
    shown = list(dict.fromkeys(rows.loc[rows["pair"] == pair, "variant"]))[:8]
    text.head(f"Learning curves, {pair}")
    charts.curves(
        sweep, rows[(rows["pair"] == pair) & rows["variant"].isin(shown)], "variant", sweep.colours, "overview"
    )
    text.small(
        "Mean over the trials that reached an epoch, band ± sample standard deviation over seeds"
        + ("" if len(shown) < 8 else "; the first 8 methods of the sweep")
        + ". Training losses are sums of different terms: compare their shapes."
    )
