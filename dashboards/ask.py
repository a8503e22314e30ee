"""What a person chooses, kept while another view is open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

KEPT = "kept."
"""Before the key of a widget: its value, which Streamlit itself forgets with the view that has the widget."""


def one(label: str, options: Sequence[Any], key: str, default: Any = None, **more: Any) -> Any:
    """One of several; the first unless it was chosen before or `default` names another. None of none."""
    _restore(key, lambda value: value in options, default if default in options else next(iter(options), None))
    return _keep(key, st.selectbox(label, options, key=key, **more))


def some(label: str, options: Sequence[str], key: str, empty: str, default: Sequence[str] = ()) -> list[str]:
    """Any number of several; none chosen means all of them, which `empty` says."""
    _restore(key, lambda value: set(value) <= set(options), list(default))
    chosen: list[str] = _keep(key, st.multiselect(label, options, key=key, placeholder=empty))
    return chosen


def number(label: str, most: int, key: str) -> int:
    """A count from 0 to `most`, or to 1 where that is 0."""
    _restore(key, lambda value: 0 <= value <= max(most, 1), 0)
    return int(_keep(key, st.number_input(label, 0, max(most, 1), key=key, step=1)))


def word(label: str, options: Sequence[str], key: str) -> str:
    """One of a few words, which are ours: radio buttons read Markdown."""
    _restore(key, lambda value: value in options, options[0])
    return str(_keep(key, st.radio(label, options, key=key, horizontal=True)))


def preset(key: str, value: Any) -> None:
    """Have `value` chosen when the widget `key` is drawn next."""
    st.session_state.pop(key, None)
    st.session_state[KEPT + key] = value


def _restore(key: str, fits: Any, default: Any) -> None:
    """Give a widget the value that it had, or its default where it can no longer have that.

    Either is always named: a browser goes on showing the old one until it is told of another.
    """
    kept = st.session_state.get(key, st.session_state.get(KEPT + key))
    st.session_state[key] = kept if kept is not None and fits(kept) else default


def _keep(key: str, value: Any) -> Any:
    st.session_state[KEPT + key] = value
    return value
