"""Who goes on: Ray's schedulers, one for each study, so that no method is stopped for being weaker than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from otkd.sweep.search import Search
from otkd.sweep.searchers import Report

COMPARED: dict[str, Any] = {"time_attr": "epoch", "metric": "value", "mode": "max"}
"""What schedulers read of a result: the fields of `Report`."""


class Median(MedianStoppingRule):
    """One that goes on listening to those whom it would have stopped."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._stopped_trials.discard(trial)
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action


SCHEDULERS: Mapping[str, Callable[[Any, int], TrialScheduler]] = {
    "fifo": lambda options, epochs: FIFOScheduler(),
    "asha": lambda options, epochs: AsyncHyperBandScheduler(
        **COMPARED, max_t=epochs, grace_period=options.grace, reduction_factor=options.factor
    ),
    # its last survivors train on to the end, which is not where a bracket's rounded epochs end
    "hyperband": lambda options, epochs: HyperBandScheduler(
        **COMPARED, max_t=epochs, reduction_factor=options.factor, stop_last_trials=False
    ),
    # it never makes a configuration wait for others, which takes the time to begin it once more
    "median": lambda options, epochs: Median(
        **COMPARED, grace_period=options.grace, min_samples_required=options.samples, min_time_slice=math.inf
    ),
}
"""Name in `search.scheduler` → what makes it, of its options and the epochs of one student."""

OVERRULED = (AsyncHyperBandScheduler, Median)
"""Those that decide by who came before. A bracket of hyperband comes to the same again when it is filled as before."""


class Standing(NamedTuple):
    """What is known of a Tune trial."""

    study: str
    id: str
    """Which configuration it trains."""
    epoch: int = 0
    """The last epoch that its scheduler has heard of."""
    earlier: int = 0
    """The last one that an earlier session has reached: all before it have let it through."""


class PerStudy(TrialScheduler):
    """Hands each Tune trial to the scheduler of its study, and asks `judge` besides.

    Args:
        search: names the scheduler.
        epochs: of one student.
        judge: told the id of a configuration and how it stands; gives a reason to stop it, or nothing.
    """

    def __init__(self, search: Search, epochs: int, judge: Callable[[str, Report], str]) -> None:
        super().__init__()
        self._search, self._epochs, self._judge = search, epochs, judge
        self._schedulers: dict[str, TrialScheduler] = {}
        self._standings: dict[str, Standing] = {}
        self.reasons: dict[str, str] = {}
        """Configuration → why it was stopped."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings so that it could restore them elsewhere; otkd resumes by a log of its own."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        standing = Standing(trial.config["study"], trial.config["id"])
        self._standings.setdefault(trial.trial_id, standing)  # it may come again, after its worker was lost
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        standing = self._standings[trial.trial_id]
        if result.get("epoch", 0) <= standing.epoch:  # nothing new, or told again after a worker was lost
            return TrialScheduler.CONTINUE
        earlier = standing.earlier if standing.epoch else result.get("earlier", 0)
        self._standings[trial.trial_id] = standing._replace(epoch=result["epoch"], earlier=earlier)
        action = self._heard(tune_controller, trial, result, earlier)
        report = _report(result)
        reason = self._judge(standing.id, report)
        if action == TrialScheduler.STOP:
            reason = reason or self._stopped(report.epoch, f", with a mean val top-1 of {report.value:.2f} %")
        if reason:
            self.reasons[standing.id] = reason
            return TrialScheduler.STOP
        return action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        standing = self._standings[trial.trial_id]
        if result.get("epoch", 0) > standing.epoch:  # its last epoch, of which Tune tells nobody else
            self._judge(standing.id, _report(result))
        if result.get("status") == "running":
            self.reasons.setdefault(standing.id, self._stopped(standing.epoch))
        if "epoch" in result:
            self._of(trial).on_trial_complete(tune_controller, trial, result)
        else:
            self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        standing = self._standings[trial.trial_id]
        self.reasons.setdefault(standing.id, self._stopped(standing.epoch))
        self._of(trial).on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for scheduler in self._schedulers.values():
            if (chosen := scheduler.choose_trial_to_run(tune_controller)) is not None:
                return chosen
        return None

    def debug_string(self) -> str:
        return "\n".join(f"{study}: {scheduler.debug_string()}" for study, scheduler in self._schedulers.items())

    def _heard(self, tune_controller: Any, trial: Any, result: dict[str, Any], earlier: int) -> str:
        """What its study's scheduler says; it cannot stop what was let through, though others were tried since."""
        scheduler = self._of(trial)
        action: str = scheduler.on_trial_result(tune_controller, trial, result)
        passed = result["epoch"] < earlier and isinstance(scheduler, OVERRULED)
        return TrialScheduler.CONTINUE if passed and action == TrialScheduler.STOP else action

    def _of(self, trial: Any) -> TrialScheduler:
        study = self._standings[trial.trial_id].study
        if study not in self._schedulers:
            options = self._search.scheduler
            self._schedulers[study] = SCHEDULERS[options.name](options, self._epochs)
        return self._schedulers[study]

    def _stopped(self, epoch: int, how: str = "") -> str:
        return f"stopped by {self._search.scheduler.name} after epoch {epoch}{how}"


def _report(result: Mapping[str, Any]) -> Report:
    return Report(*(result[name] for name in Report._fields))
