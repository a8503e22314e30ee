"""The page: which sweep, which view, and that it is read again when the store has something new."""

from __future__ import annotations

import os
import time
from itertools import count

import streamlit as st

from dashboards import ask, source, text
from dashboards.views import ablation, compare, cost, failures, leaderboard, overview, trial
from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.core.plugins import unknown
from otkd.report import live

VIEWS = {
    "Overview": overview,
    "Leaderboard": leaderboard,
    "Compare two": compare,
    "Ablations": ablation,
    "One trial": trial,
    "Cost": cost,
    "Failures": failures,
}
LOOK_S = 10
"""Seconds between two looks at whether the store has something new."""
READ, ASKED, ASKED_VIEW = "sweep.read", "sweep.asked", "view.asked"
"""Keys of the session: the sweep that was read last; what the address names and is not there, a sweep and a view."""


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="otkd", layout="wide")
    text.style()
    layout = Layout(os.environ.get("OTKD_RUNS", "runs"))
    before: source.Sweep | None = st.session_state.get(READ)
    stamp = before.stamp if before is not None and before.fresh else live.stamp(layout)
    which, switches = st.columns([3, 2], vertical_alignment="bottom")
    with switches:
        _watch(layout, stamp)
    with which:
        sweep = _sweep(layout, stamp, before)
    if sweep is not None:
        _show(sweep)


def _sweep(layout: Layout, stamp: str, before: source.Sweep | None) -> source.Sweep | None:
    """The sweep that was chosen. Where it cannot be read, that is said, and what was read before stays."""
    try:
        sweep = source.read(layout, _chosen(source.sweeps(layout, stamp)), stamp)
    except OtkdError as error:
        text.notice(str(error), code=True)
        if before is None:
            text.say("This page looks again every few seconds, and shows the sweep as soon as there is one.")
        else:
            text.small("Shown below is what was read before.")
        return before
    st.session_state[READ] = sweep
    return sweep


def _chosen(names: list[str]) -> str:
    """The sweep that is chosen or that the address names; what is not there is said until another is chosen."""
    asked = st.session_state.setdefault(ASKED, st.query_params.get("sweep"))
    if asked in names:
        ask.preset("sweep", asked)
        st.session_state[ASKED] = asked = None
    name = str(ask.one("Sweep", names, "sweep", help="The newest first.", on_change=_nothing_asked))
    if asked:
        text.notice(f"The address asks for another: {unknown('sweep', asked, names)}")
    return name


def _nothing_asked() -> None:
    st.session_state[ASKED] = None


def _show(sweep: source.Sweep) -> None:
    view = _view(list(VIEWS))
    here = {"sweep": sweep.info.name, "view": view}
    if st.query_params.to_dict() != here:
        st.query_params.from_dict(here)
    text.title(sweep.info.name)
    text.say(overview.standing(sweep.frame))
    try:
        VIEWS[view].show(sweep)
    except OtkdError as error:
        text.notice(str(error), code=True)
    text.small(f"Read {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(sweep.read))} from {sweep.layout.root}.")


def _view(names: list[str]) -> str:
    """The view that is chosen or that the address names; what is not there is said until another is chosen."""
    asked = st.session_state.setdefault(ASKED_VIEW, st.query_params.get("view"))
    if asked in names:
        ask.preset("view", asked)
    view = ask.word("View", names, "view")
    if asked in names or view != names[0]:
        st.session_state[ASKED_VIEW] = asked = None
    if asked:
        text.notice(f"The address asks for another: {unknown('view', asked, names)}")
    return view


def _watch(layout: Layout, stamp: str) -> None:
    """A switch for reading again by itself, and a button for now."""
    switch, button = st.columns(2, vertical_alignment="center")
    on = switch.toggle("Live", value=True, key="live", help=f"Looks every {LOOK_S} s; reads where something is new.")
    if button.button("Read again", width="stretch"):
        source.again()
        st.rerun()
    calls = count()

    @st.fragment(run_every=LOOK_S if on else None)
    def look() -> None:
        if next(calls) and live.stamp(layout) != stamp:
            st.rerun()

    look()
