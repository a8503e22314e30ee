"""Runs cohorts on Ray Tune: one Tune trial is one cohort."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: it ends the driver, which ends all

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep.runner import Listener, Mailbox, NoteHandler, deliver, threads
from otkd.sweep.spec import Resources
from otkd.train import CohortTrainer, Environment
from otkd.train.device import pick
from otkd.train.distributed import Group, GroupError, Place

log = logging.getLogger("otkd")

REPORT_EVERY_S = 1.0
"""Epochs shorter than this are reported to the driver several at a time."""


class Rank:
    """One of the processes that train a cohort; usually the only one."""

    def begin(self, config: dict[str, Any], place: Place, listener: Listener | None = None) -> None:
        """Get ready, together with the others."""
        with self._leaving_on_error():
            self._begin(config, place, listener)

    def step(self) -> None:
        """Train to the end of an epoch."""
        with self._leaving_on_error():
            self.trainer.step()

    def end(self) -> None:
        """Leave the others."""
        group, self.group = getattr(self, "group", Group()), Group()
        group.close()

    @contextmanager
    def _leaving_on_error(self) -> Iterator[None]:
        """The others, who wait for this one, hear at once that it is gone."""
        try:
            yield
        except BaseException:
            self.end()
            raise

    def _begin(self, config: dict[str, Any], place: Place, listener: Listener | None) -> None:
        trials = [Trial.model_validate_json(text) for text in config["cohort"]]
        options = dict(config["environment"])
        layout, data_dir = Layout(options.pop("layout")), options.pop("data_dir")
        environment = Environment(layout=layout, data_dir=Path(data_dir) if data_dir else None, **options)
        self.group = Group() if place.world == 1 else Group.open(place, pick(environment.device))
        sink = Mailbox() if listener is None else listener
        self.trainer = CohortTrainer(trials, sink, dataclasses.replace(environment, group=self.group))


class CohortTrainable(tune.Trainable):
    """A cohort as Tune sees it; an actor serves many of them, so torch is imported once.

    Where a cohort has several processes this is the first; the others are actors in the other bundles of its placement
    group, which live as long as the cohort.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._mailbox = Mailbox()
        self._own, self._peers, self._places = Rank(), list[Any](), list[Place]()
        logging.getLogger("otkd").handlers = [NoteHandler(self._mailbox)]
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        self._end()

    def step(self) -> dict[str, Any]:
        begin = time.monotonic()
        with self._told():
            while not self._over and time.monotonic() - begin < REPORT_EVERY_S:
                self._together("step")
        if self._over:
            self._end()
        return {"events": self._mailbox.take(), "refusal": self._refusal, "done": self._over}

    @property
    def _over(self) -> bool:
        return self._broken or self._own.trainer.done

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The driver hears of an error, along with everything that was reported before it; Tune does not.

        But for a process that was lost: Tune begins such a cohort again.
        """
        try:
            yield
        except StorageError as error:
            self._broken, self._refusal = True, str(error)
        except (GroupError, RayError):
            raise
        except Exception as error:
            self._broken = True
            self._mailbox.note(f"a cohort failed: {type(error).__name__}: {error}")

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: trials resume from checkpoints of their own under `runs/trials/`."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """`setup` has resumed from the trials' own checkpoints already."""

    def _begin(self, config: dict[str, Any]) -> None:
        self._broken, self._refusal = False, ""
        config = dict(config)
        world, here = config.pop("world"), config.pop("here")
        self._places = places = _places(world, here)
        self._peers = _peers(world)
        with self._told():
            begun = [peer.begin.remote(config, place) for peer, place in zip(self._peers, places[1:], strict=True)]
            self._meet(begun, partial(self._own.begin, config, places[0], self._mailbox))

    def _together(self, name: str) -> None:
        """Have all processes do the same."""
        self._meet([getattr(peer, name).remote() for peer in self._peers], getattr(self._own, name))

    def _meet(self, asked: list[Any], own: Callable[[], None]) -> None:
        """Do one's own part; where it fails for another's failure, that one's error says more."""
        try:
            own()
        except GroupError:
            ray.get(asked)
            raise
        ray.get(asked)

    def _end(self) -> None:
        self._own.end()
        for peer in self._peers:
            ray.kill(peer)
        if self._places and self._places[0].file:
            shutil.rmtree(Path(self._places[0].file).parent, ignore_errors=True)
        self._peers, self._places = [], []


def _places(world: int, here: bool) -> list[Place]:
    """Where each process stands: on one machine they meet by a file, on several by an address."""
    if world == 1:
        return [Place()]
    if here:
        file = Path(tempfile.mkdtemp(prefix="otkd-")) / "meeting"
        return [Place(rank, world, file=str(file)) for rank in range(world)]
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return [Place(rank, world, ray.util.get_node_ip_address(), port) for rank in range(world)]


def _peers(world: int) -> list[Any]:
    """The other processes of a cohort, one in each further bundle of its placement group."""
    group = ray.util.get_current_placement_group()
    peers = []
    for bundle in range(1, world):
        asked = group.bundle_specs[bundle]
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        options = {"num_cpus": asked.get("CPU", 0), "num_gpus": asked.get("GPU", 0), "scheduling_strategy": where}
        peers.append(ray.remote(Rank).options(**options).remote())
    return peers


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
        gpu, world = self.resources.gpu, self.resources.gpus_per_trial
        wanted = gpu if gpu is not None and (gpu == 0 or world == 1) else 1
        self.gpu = wanted if self.total.get("GPU", 0) else 0
        self._expect_room(world)
        return self

    def __exit__(self, *error: object) -> None:
        ray.shutdown()

    def _expect_room(self, world: int) -> None:
        """Ray would wait for ever for what there is not."""
        cores, gpus = self.total["CPU"], self.total.get("GPU", 0)
        if world > 1 and (cores < world or (self.gpu and gpus < world)):
            ray.shutdown()
            raise OtkdError(
                f"resources.gpus_per_trial: {world} processes a cohort need a core each, and a GPU each where there "
                f"are any; here are {cores:g} cores and {gpus:g} GPUs. Ask for fewer, or name a cluster with --address."
            )

    def slots(self, cpu: float) -> int:
        """As many as cores and GPUs allow; at least one."""
        world = self.resources.gpus_per_trial
        by_cpu = int(self.total["CPU"] / (world * self._cpu(cpu)))
        return max(1, min(by_cpu, int(self.total["GPU"] / (world * self.gpu))) if self.gpu else by_cpu)

    def run(self, cohorts: Sequence[Sequence[Trial]], cpu: float, listener: Listener) -> None:
        """Train all of them; a cohort whose worker keeps dying is named and left for the next attempt.

        Raises:
            StorageError: nothing more can be written.
        """
        world, layout, data_dir = self.resources.gpus_per_trial, self.environment.layout, self.environment.data_dir
        environment = {
            "layout": str(layout.root.resolve()),
            "data_dir": str(data_dir.resolve()) if data_dir else None,
            "device": self.environment.device
            if self.gpu
            else "cpu",  # Ray leaves GPUs visible to those who ask for none
            "threads": threads(self._cpu(cpu), self.total["CPU"]),
            "workers": self.environment.workers,
            "checkpoint_s": self.environment.checkpoint_s,
        }
        space = {
            "cohort": tune.grid_search([[trial.model_dump_json() for trial in cohort] for cohort in cohorts]),
            "environment": environment,
            "world": world,
            "here": self.address == "local",
        }
        bundle = {"CPU": self._cpu(cpu), **({"GPU": self.gpu} if self.gpu else {})}
        courier = _Courier(listener)
        tuner = tune.Tuner(
            tune.with_resources(CohortTrainable, tune.PlacementGroupFactory([bundle] * world, strategy="PACK")),
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
        """Cores of one process: as many as are asked for, or its share of all there are."""
        return min(cpu, max(self.total["CPU"] // self.resources.gpus_per_trial, 1))


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
