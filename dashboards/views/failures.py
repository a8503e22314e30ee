"""What has no result, and why."""

from __future__ import annotations

import streamlit as st

from dashboards import ask, text
from dashboards.source import Sweep
from dashboards.views import trial


def show(sweep: Sweep) -> None:
    """The report's list with filters; any of it can be opened."""
    tables = sweep.tables("failures")
    if not tables:
        text.say("Every trial that is compared has its result.")
        return
    (table,) = tables
    data = table.data
    first, second = st.columns(2)
    with first:
        states = ask.some("Status", list(dict.fromkeys(data["status"])), "failures.status", "every status")
    with second:
        pairs = ask.some("Pairs", list(dict.fromkeys(data["pair"])), "failures.pairs", "all pairs and teachers")
    data = data[data["status"].isin(states or data["status"]) & data["pair"].isin(pairs or data["pair"])]
    if data.empty:
        text.say("None fits these filters.")
        return
    shown = data[["method", "pair", "seed", "status", "reason", "key"]]
    st.dataframe(shown, hide_index=True, width="stretch")
    text.small(table.caption)
    words = {
        key: " · ".join([method, pair, f"seed {seed}", status])
        for method, pair, seed, status, _, key in shown.itertuples(index=False)
    }
    place, button = st.columns([4, 1], vertical_alignment="bottom")
    with place:
        key = ask.one("Trial", list(words), "failures.key", format_func=words.get)
    button.button("Open it", on_click=trial.open_key, args=(sweep, key), width="stretch")
