"""Loops compiled by numba, for work that is too small for calls into torch.

The machine code of a function that others call is kept beside its file, or in the user's cache folder; it is made once
per machine and precision, in some seconds. Where neither folder can be written it is made by each process anew. It is
made again when its file changes, and only then: what it is compiled with, functions and constants, stands in that file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Array = Any
"""Of numpy, in a problem's precision."""

PLAIN = {"nogil": True, "error_model": "numpy"}
OPTIONS = {**PLAIN, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""Sums may be reordered. NaN and infinity keep their meaning. Kept code does not notice a change here: `make clean`."""


def inner(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that only compiled ones call."""
    made: Callable[..., Any] = njit(**OPTIONS)(function)
    return made


def outer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function that Python calls, and keep the code."""
    try:
        made: Callable[..., Any] = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # there is no place to keep it in
        return inner(function)
    return made
