"""Runs a search on Ray Tune: one Tune trial is one configuration with all its seeds."""

from __future__ import annotations

import time
from typing import Any

from ray.exceptions import RayError
from ray.tune.search import Searcher

from otkd.core.errors import StorageError
from otkd.core.records import EpochRecord
from otkd.core.trial import Trial
from otkd.sweep.candidate import Seeds
from otkd.sweep.contest import Contest, Status, Witness
from otkd.sweep.overseer import Overseer
from otkd.sweep.schedulers import PerStudy
from otkd.sweep.search import Candidate
from otkd.sweep.searchers import Report
from otkd.sweep.tried import id_of
from otkd.sweep.tune import REPORT_EVERY_S, CohortTrainable, Courier, Rank, RayRunner, cohort, received
from otkd.train import CohortTrainer
from otkd.train.distributed import Place


class CandidateTrainable(CohortTrainable):
    """A configuration as Tune sees it: a trainer per seed, one epoch a result, so that a scheduler can say stop.

    What was decided in an earlier session is told again from the log, without training.
    """

    _seeds: Seeds | None = None
    _replay: list[Report]
    _known: list[str]
    _earlier: int
    """The last epoch that an earlier session has reached."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._replay, self._known = [Report(*values) for values in new_config["replay"]], []
        self._earlier = len(self._replay)
        return super().reset_config(new_config)

    def step(self) -> dict[str, Any]:
        if self._replay:
            told = {"earlier": self._earlier, "status": "running", **self._replay.pop(0)._asdict()}
            return {"events": [], "refusal": "", "done": False, **told}
        report = self._trained()
        known, self._known = self._known, []
        reported = report._asdict() if report is not None else {}
        told = {"known": known, "earlier": self._earlier, "status": self._status, **reported}
        over = self._over
        if over:
            self._end()
        return {"events": self._mailbox.take(), "refusal": self._refusal, "done": over, **told}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """The seeds write checkpoints of their own under `runs/trials/`; Tune's is empty."""
        self._save()
        return {}

    def _trained(self) -> Report | None:
        """What an epoch more has brought; None after a second without one, so that the driver hears of the seeds."""
        begin, report = time.monotonic(), None
        with self._told():
            if not self._begun:
                self._begin()
            while self._seeds and report is None and not self._over and time.monotonic() - begin < REPORT_EVERY_S:
                report = self._seeds.step()
        return report

    @property
    def _status(self) -> str:
        return "failed" if self._broken or self._seeds is None else self._seeds.status

    @property
    def _over(self) -> bool:
        return self._status != "running"

    def _begin(self) -> None:
        config = self._config

        def make(trial: Trial) -> CohortTrainer:
            rank = Rank()
            rank.begin({**config, "cohort": [trial.model_dump_json()]}, Place(), self._mailbox)
            return rank.trainer

        self._seeds = Seeds(cohort(config), received(config["environment"]), make, config["retries"], (RayError,))
        self._known = [record.model_dump_json() for record in self._seeds.known]
        self._earlier = max(self._earlier, self._seeds.reached)
        self._begun = True

    def _end(self) -> None:
        """Leave a configuration: one that was stopped keeps its checkpoints."""
        self._save()
        self._seeds = None

    def _save(self) -> None:
        if self._seeds is not None and not self._broken:
            with self._told():
                self._seeds.save()


class Suggestions(Searcher):
    """Asks the contest for the next configuration when there is room for it.

    Args:
        courier: is told when the disk refuses, and stops all.
        slots: configurations that train at a time; None to ask ahead, for schedulers that let some wait.
    """

    def __init__(self, contest: Contest, courier: Courier, slots: int | None) -> None:
        super().__init__()
        self._contest, self._courier, self._slots = contest, courier, slots
        self._live: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings so that it could restore them elsewhere; otkd resumes by a log of its own."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self._slots is not None and len(self._live) >= self._slots:
            return None
        try:
            candidate = None if self._contest.layout.stop.exists() else self._contest.next()
        except StorageError as error:  # raised here it would reach the user as Tune's error, not as ours
            self._courier.refusal = str(error)
            return Searcher.FINISHED
        if candidate is None:
            return None if self._contest.waits else Searcher.FINISHED
        self._live.add(trial_id)
        return self._described(candidate)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def _described(self, candidate: Candidate) -> dict[str, Any]:
        standing = self._contest.standings[id_of(candidate)]
        decided = standing.earlier.reports if standing.decided and standing.earlier else ()
        return {
            "study": candidate.study.title,
            "id": id_of(candidate),
            "cohort": [planned.trial.model_dump_json() for planned in candidate.planned],
            "replay": [list(report) for report in decided],
        }


class Umpire(Courier):
    """Carries what workers report to the listener, and the ends of configurations to the contest."""

    def __init__(
        self, contest: Contest, scheduler: PerStudy, witness: Witness, runner: RayRunner, overseer: Overseer
    ) -> None:
        super().__init__(witness, runner, overseer)
        self._contest, self._scheduler, self._witness = contest, scheduler, witness

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        for text in result.pop("known", ()):
            self._witness.remember(EpochRecord.model_validate_json(text))
        super().on_trial_result(iteration, trials, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        super().on_trial_complete(iteration, trials, trial)
        status = trial.last_result.get("status", "running")
        if status == "running":
            self._settle(trial, "pruned", self._scheduler.reasons[trial.config["id"]])
        elif status != "stopped":
            self._settle(trial, status, "")

    def _give_back(self, trial: Any) -> None:
        self._contest.put_back(trial.config["id"])

    def _fail(self, trial: Any) -> None:
        super()._fail(trial)
        self._settle(trial, "failed", "its worker was lost")

    def _settle(self, trial: Any, status: Status, reason: str) -> None:
        keys = [own.key for own in cohort(trial.config)]
        try:
            self._contest.end(trial.config["id"], status, reason, self._witness.take(keys))
        except StorageError as error:  # raised here it would reach the user as Tune's error, not as ours
            self.refusal = str(error)


def run(contest: Contest, runner: RayRunner, witness: Witness) -> None:
    """Train the configurations of a contest side by side, until it has no more or somebody asks to stop.

    Raises:
        StorageError: nothing more can be written.
    """
    spec = contest.plan.spec
    scheduler = PerStudy(spec.search, spec.train.epochs, contest.judge)
    overseer = runner.overseer(witness, lambda trial: cohort(trial.config))
    umpire = Umpire(contest, scheduler, witness, runner, overseer)
    ahead = spec.search.scheduler.name == "hyperband"  # a bracket waits for those that are not there yet
    suggestions = Suggestions(contest, umpire, None if ahead else runner.slots(spec.resources.cpu))
    space = {"environment": runner.sent(spec.resources.cpu), "retries": spec.resources.retries}
    bundles = [runner.bundle(spec.resources.cpu)]
    options = {"search_alg": suggestions, "scheduler": scheduler, "num_samples": contest.most}
    runner.fit(CandidateTrainable, bundles, space, umpire, contest.most if ahead else 1, **options)
    while contest.waits and not contest.layout.stop.exists():  # for a worker; Tune asks no more once told of the end
        runner.fit(CandidateTrainable, bundles, space, umpire, contest.most if ahead else 1, **options)
    runner.level(planned.trial for standing in contest.standings.values() for planned in standing.candidate.planned)
