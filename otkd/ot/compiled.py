"""Loops compiled by numba, for work that is too small for calls into torch.

The machine code of a function that others call is kept beside its file, or in the user's cache folder; it is made once
per machine and precision, in some seconds. Where neither folder can be written it is made by each process anew. It is
made again when its file changes, and only then: what it is compiled with, functions and constants, stands in that file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

from otkd.core.locks import locked

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
    made: Any = njit(**OPTIONS)(function)
    try:
        made._cache = _Kept(function)  # as njit(cache=True) sets it
    except RuntimeError as error:
        if "no locator" not in str(error):
            raise
        announce()
    called: Callable[..., Any] = made
    return called


class _Kept(FunctionCache):
    """numba's files for the code of one function, which two processes that save at once would mix up."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with locked(self._lock, shared=True):
            found = super().load_overload(sig, target_context)
        if found is None:
            announce()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError), locked(self._lock):  # a full disk ends no training
            self._remove_stale()
            super().save_overload(sig, data)

    def _remove_stale(self) -> None:
        """Code of an earlier source: numba writes the index first, and would take it for new if nothing more came."""
        files = self._cache_file
        if not files._load_index():
            for path in Path(self.cache_path).glob(f"{Path(files._index_name).stem}.*.nbc"):
                path.unlink()

    @property
    def _lock(self) -> Path:
        return Path(self.cache_path, "lock")


@cache
def announce() -> None:
    """Say once in a process what it waits for."""
    logging.getLogger(__name__).warning("otkd compiles its solvers for this machine, which takes some ten seconds")
