"""Runs cohorts on Ray Tune: one Tune trial is one cohort."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: it ends the driver, which ends all

import ray
from ray import tune

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep.runner import Listener, Mailbox, NoteHandler, deliver, threads
from otkd.sweep.spec import Resources
from otkd.train import CohortTrainer, Environment

log = logging.getLogger("otkd")

REPORT_EVERY_S = 1.0
"""Epochs shorter than this are reported to the driver several at a time."""


class CohortTrainable(tune.Trainable):
    """A cohort as Tune sees it; an actor serves many of them, so torch is imported once."""

    def setup(self, config: dict[str, Any]) -> None:
        self._mailbox = Mailbox()
        logging.getLogger("otkd").handlers = [NoteHandler(self._mailbox)]
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        begin = time.monotonic()
        with self._told():
            while not self._over and time.monotonic() - begin < REPORT_EVERY_S:
                self._trainer.step()
        return {"events": self._mailbox.take(), "refusal": self._refusal, "done": self._over}

    @property
    def _over(self) -> bool:
        return self._broken or self._trainer.done

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The driver hears of an error, along with everything that was reported before it; Tune does not."""
        try:
            yield
        except StorageError as error:
            self._broken, self._refusal = True, str(error)
        except Exception as error:
            self._broken = True
            self._mailbox.note(f"a cohort failed: {type(error).__name__}: {error}")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: trials resume from checkpoints of their own under `runs/trials/`."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """`setup` has resumed from the trials' own checkpoints already."""

    def _begin(self, config: dict[str, Any]) -> None:
        trials = [Trial.model_validate_json(text) for text in config["cohort"]]
        environment = dict(config["environment"])
        layout = Layout(environment.pop("layout"))
        data_dir = environment.pop("data_dir")
        settings = Environment(layout=layout, data_dir=Path(data_dir) if data_dir else None, **environment)
        self._broken, self._refusal = False, ""
        with self._told():
            self._trainer = CohortTrainer(trials, self._mailbox, settings)


class RayRunner:
    """Cohorts as Ray Tune trials over the cores and GPUs of this machine, or of the cluster at `address`.

    Raises:
        OtkdError: the cluster cannot be reached.
    """

    def __init__(self, environment: Environment, resources: Resources, address: str = "local") -> None:
        self.environment, self.resources, self.address = environment, resources, address

    def __enter__(self) -> RayRunner:
        if not log.isEnabledFor(logging.DEBUG):
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong reaches the listener, in one line
        try:
            ray.init(
                address=self.address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({"object_store_memory": 2**28} if self.address == "local" else {}),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise OtkdError(
                f"Ray at {self.address!r} does not answer: {error}. Without --address it runs here."
            ) from error
        self.total = ray.cluster_resources()
        wanted = 1 if self.resources.gpu is None else self.resources.gpu
        self.gpu = wanted if self.total.get("GPU", 0) else 0
        return self

    def __exit__(self, *error: object) -> None:
        ray.shutdown()

    def slots(self, cpu: float) -> int:
        """As many as cores and GPUs allow; at least one."""
        by_cpu = int(self.total["CPU"] / self._cpu(cpu))
        return max(1, min(by_cpu, int(self.total["GPU"] / self.gpu)) if self.gpu else by_cpu)

    def run(self, cohorts: Sequence[Sequence[Trial]], cpu: float, listener: Listener) -> None:
        """Train all of them; a cohort whose worker keeps dying is named and left for the next attempt.

        Raises:
            StorageError: nothing more can be written.
        """
        environment = dataclasses.asdict(dataclasses.replace(self.environment, threads=threads(cpu, self.total["CPU"])))
        if not self.gpu:
            environment["device"] = "cpu"  # Ray leaves GPUs visible to those who asked for none
        layout = self.environment.layout
        environment["layout"] = str(layout.root.resolve())
        environment["data_dir"] = str(self.environment.data_dir.resolve()) if self.environment.data_dir else None
        space = {
            "cohort": tune.grid_search([[trial.model_dump_json() for trial in cohort] for cohort in cohorts]),
            "environment": environment,
        }
        courier = _Courier(listener)
        tuner = tune.Tuner(
            tune.with_resources(CohortTrainable, {"cpu": self._cpu(cpu), "gpu": self.gpu}),
            param_space=space,
            tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id),
            run_config=tune.RunConfig(
                storage_path=str(layout.ray.resolve()),
                failure_config=tune.FailureConfig(max_failures=self.resources.retries),
                callbacks=[courier],
                stop=courier,
                verbose=0,
            ),
        )
        tuner.fit()
        if courier.refusal:
            raise StorageError(courier.refusal)

    def _cpu(self, cpu: float) -> float:
        return min(cpu, self.total["CPU"])


class _Courier(tune.Callback, tune.Stopper):
    """Carries what workers report to the driver's listener, and stops all of them once the disk refuses."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.refusal = ""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings so that it could restore them elsewhere; the listener stays here."""
        return {"refusal": self.refusal}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.refusal)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.refusal = self.refusal or result.get("refusal", "")
        try:
            deliver(result.pop("events", ()), self._listener)
        except StorageError as error:  # raised here it would reach the user as Tune's error, not as ours
            self.refusal = str(error)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._listener.note(f"a worker was lost ({_reason(trial)}); its cohort goes on from the last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._listener.note(f"a cohort failed: {_reason(trial)}")


def _reason(trial: Any) -> str:
    """The last line of what Ray knows about a failure."""
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else "no reason is known"
