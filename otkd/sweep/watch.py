"""Finds cohorts that have stopped making progress, by the pulse files of their trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from otkd.core.layout import Layout

MOST_STEP_S = 5.0
"""The most that one look adds to a silence: while the driver itself was held up, nobody was listening."""


class Watch:
    """Counts for how long each cohort has been silent, by this process's own clock.

    Files are compared with themselves alone: neither clocks of other machines nor clocks that are set matter.

    Args:
        layout: where the trials lie.
        most_s: seconds of silence after which a cohort counts as hung.
        clock: gives seconds that never go back.
    """

    def __init__(self, layout: Layout, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout, self._most_s, self._clock = layout, most_s, clock
        self._looked = clock()
        self._signs: dict[str, tuple[int, ...]] = {}
        self._silent_s: dict[str, float] = {}

    def hung(self, running: Mapping[str, Iterable[str]]) -> list[str]:
        """Those which have been silent for too long; their silence begins anew, as whoever asks will end them.

        Args:
            running: cohort → keys of its trials. What was not there at the last look counts from now on.
        """
        since = min(self._clock() - self._looked, MOST_STEP_S)
        self._looked = self._clock()
        signs = {name: tuple(map(self._sign, keys)) for name, keys in running.items()}
        self._silent_s = {
            name: self._silent_s[name] + since if self._signs.get(name) == sign else 0.0 for name, sign in signs.items()
        }
        self._signs = signs
        found = [name for name, silent_s in self._silent_s.items() if silent_s >= self._most_s]
        for name in found:
            del self._signs[name]
        return found

    def _sign(self, key: str) -> int:
        try:
            return self._layout.trial(key).pulse.stat().st_mtime_ns
        except OSError:  # none yet, or its trial has ended
            return 0
