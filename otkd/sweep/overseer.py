"""Looks after Tune's trials from the driver: ends workers that hang, and waits for those that save to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep import stopping
from otkd.sweep.watch import Watch

LOOK_S = 1.0
"""Seconds between looks."""
SAVE_S = 60.0
"""How long a worker may take to end once it is asked to; then it is ended, and goes on from its last checkpoint."""


class Overseer:
    """Called by Tune's callbacks.

    Args:
        layout: where the pulses of the trials lie, and the file that asks to stop.
        hung_s: seconds without progress after which a worker is ended; None for never, as where no pulse is seen.
        trials_of: the trials that one of Tune's trains.
        note: tells a person.
        clock: gives seconds that never go back.
    """

    def __init__(
        self,
        layout: Layout,
        hung_s: float | None,
        trials_of: Callable[[Any], Sequence[Trial]],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout, self._hung_s, self._trials_of, self._note = layout, hung_s, trials_of, note
        self._clock = clock
        self._watch = None if hung_s is None else Watch(layout, hung_s, clock)
        self._looked = clock() - LOOK_S
        self._known: dict[str, list[Trial]] = {}
        self._awaited: set[str] | None = None
        """Those of Tune's trials that are to save; None until somebody asks to stop."""
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Somebody has asked to stop, and all who had something to save have ended, or their time is up."""
        return self._awaited is not None and (not self._awaited or self._clock() > self._until)

    def look(self, trials: Sequence[Any]) -> None:
        """To be called often, with all of Tune's trials."""
        if self._clock() - self._looked < LOOK_S:
            return
        self._looked = self._clock()
        running = {trial.trial_id: trial for trial in trials if trial.status == trial.RUNNING}
        if self._awaited is None and stopping.asked(self._layout):
            self._awaited, self._until = set(running), self._clock() + SAVE_S
        if self._watch is not None:
            keys = {name: [own.key for own in self._own(trial)] for name, trial in running.items()}
            for name in self._watch.hung(keys):
                self._end(running[name])

    def ended(self, trial: Any) -> None:
        """One of Tune's trials is over, well or not."""
        self._known.pop(trial.trial_id, None)
        if self._awaited is not None:
            self._awaited.discard(trial.trial_id)

    def _own(self, trial: Any) -> list[Trial]:
        if trial.trial_id not in self._known:
            self._known[trial.trial_id] = list(self._trials_of(trial))
        return self._known[trial.trial_id]

    def _end(self, trial: Any) -> None:
        """End the worker; Tune begins another one, which goes on from the checkpoint."""
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            self._note(f"{called(self._own(trial))}: no progress for {self._hung_s:g} s; its worker is ended")
            ray.kill(actor)


def called(trials: Sequence[Trial]) -> str:
    """A cohort, or the seeds of a configuration, for a person: `resnet8, seed 0 (ce; ce + kd)`."""
    students = ", ".join(dict.fromkeys(trial.student.name for trial in trials))
    seeds = ", ".join(dict.fromkeys(str(trial.seed) for trial in trials))
    objectives = "; ".join(dict.fromkeys(" + ".join(trial.objective) for trial in trials))
    return f"{students}, seed {seeds} ({objectives})"
