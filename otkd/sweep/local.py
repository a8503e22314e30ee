"""Runs cohorts one after the other in this process, without Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from otkd.core.errors import StorageError
from otkd.core.trial import Trial
from otkd.sweep import stopping
from otkd.sweep.runner import Listener, fail, threads
from otkd.train import Environment, fit


class LocalRunner:
    """One cohort at a time."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def slots(self, cpu: float) -> int:
        """One."""
        return 1

    def run(self, cohorts: Sequence[Sequence[Trial]], cpu: float, listener: Listener) -> None:
        """Train all of them, until somebody asks to stop; a cohort that fails is left for the next attempt.

        Raises:
            StorageError: nothing more can be written.
        """
        for cohort in cohorts:
            if self.environment.heed_stop and stopping.asked(self.environment.layout):
                return
            self._fit(cohort, listener, replace(self.environment, threads=threads(cpu, os.cpu_count() or 1)))

    def _fit(self, cohort: Sequence[Trial], listener: Listener, environment: Environment) -> None:
        try:
            fit(cohort, listener, environment)
        except StorageError:
            raise
        except Exception as error:
            fail(cohort, error, environment, listener)
