"""Runs cohorts one after the other in this process, without Ray."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from otkd.core.errors import StorageError
from otkd.core.trial import Trial
from otkd.sweep.runner import Listener, NoteHandler
from otkd.train import Environment, fit

log = logging.getLogger("otkd")


class LocalRunner:
    """One cohort at a time, with all of the machine's cores unless the environment says otherwise."""

    slots = 1

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(self, cohorts: Sequence[Sequence[Trial]], listener: Listener) -> None:
        """Train all of them; a cohort that fails is named and left for the next attempt.

        Raises:
            StorageError: nothing more can be written.
        """
        handler = NoteHandler(listener)
        log.addHandler(handler)
        try:
            for cohort in cohorts:
                self._fit(cohort, listener)
        finally:
            log.removeHandler(handler)

    def _fit(self, cohort: Sequence[Trial], listener: Listener) -> None:
        try:
            fit(cohort, listener, self.environment)
        except StorageError:
            raise
        except Exception as error:
            listener.note(f"cohort of {len(cohort)} ({cohort[0].student.name}) failed: {type(error).__name__}: {error}")
