"""Runs cohorts on Ray Tune: one Tune trial is one cohort."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from otkd.core.storage import Storage, opened, scratch
from otkd.core.trial import Trial
from otkd.sweep.cluster import CLAIM, TYPE, Relay, connect, expect_fit, leave, room
from otkd.sweep.overseer import Overseer
from otkd.sweep.runner import HERE, Listener, Mailbox, NoteHandler, WorkerLostError, deliver, fail, threads
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
        trials, environment = cohort(config), received(config["environment"])
        self.group = Group() if place.world == 1 else Group.open(place, pick(environment.device))
        sink = Mailbox() if listener is None else listener
        self.trainer = CohortTrainer(trials, sink, dataclasses.replace(environment, group=self.group))


def cohort(config: dict[str, Any]) -> list[Trial]:
    """The trials that one of Tune's trains."""
    return [Trial.model_validate_json(text) for text in config["cohort"]]


def received(sent: dict[str, Any]) -> Environment:
    """The environment of a worker, as `RayRunner.sent` has described it."""
    options = dict(sent)
    storage, data_dir, owner = options.pop("storage"), options.pop("data_dir"), options.pop("owner")
    runs = options.pop("layout")
    layout = scratch(storage, owner) if runs is None else Layout(runs)
    data = Path(data_dir) if data_dir else None
    return Environment(layout=layout, data_dir=data, mirror=opened(storage), **options)


class CohortTrainable(tune.Trainable):
    """A cohort as Tune sees it; an actor serves many of them, so torch is imported once.

    Where a cohort has several processes this is the first; the others are actors in the other bundles of its placement
    group, which live as long as the cohort.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._mailbox = Mailbox()
        self._own, self._peers, self._places = Rank(), list[Any](), list[Place]()
        logging.getLogger("otkd").handlers = [NoteHandler(self._mailbox)]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin with the first step: by then the driver knows this worker, and can end it when it hangs."""
        self._config = dict(new_config)
        self._begun = self._broken = False
        self._refusal = ""
        return True

    def cleanup(self) -> None:
        self._end()

    def step(self) -> dict[str, Any]:
        begin = time.monotonic()
        with self._told():
            if not self._begun:
                self._begin()
            while not self._over and time.monotonic() - begin < REPORT_EVERY_S:
                self._together("step")
        over = self._over
        if over:
            self._end()
        return {"events": self._mailbox.take(), "refusal": self._refusal, "done": over}

    @property
    def _over(self) -> bool:
        return self._broken or self._own.trainer.done or self._own.trainer.stopped

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
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        try:
            fail(cohort(self._config), error, received(self._config["environment"]), self._mailbox)
        except StorageError as refusal:
            self._refusal = str(refusal)

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: trials resume from checkpoints of their own under `runs/trials/`."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """The first step resumes from the trials' own checkpoints."""

    def _begin(self) -> None:
        config, world = self._config, self._config["world"]
        self._places = places = _places(world, config["here"])
        self._peers = _peers(world)
        begun = [peer.begin.remote(config, place) for peer, place in zip(self._peers, places[1:], strict=True)]
        self._meet(begun, partial(self._own.begin, config, places[0], self._mailbox))
        self._begun = True

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
        self._own = Rank()  # lets go of what the cohort holds
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
        self.storage = environment.mirror.url if address != HERE else None
        """What stands between the workers' folders and the driver's; None where they share `runs/`."""
        self.owner = f"{socket.gethostname()}:{environment.layout.root.resolve()}"
        self._relay: Relay | None = None

    def __enter__(self) -> RayRunner:
        connect(self.address)
        if not log.isEnabledFor(logging.DEBUG):  # after Ray has started, which sets it anew
            logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong reaches the listener, in one line
        try:
            self._look_around()
        except BaseException:
            leave()
            raise
        return self

    def _look_around(self) -> None:
        layout = self.environment.layout
        if self.address != HERE:
            expect_fit(layout.root, self.storage, self.owner, self.environment.data_dir)
        if self.storage:
            self._relay = Relay(layout, self.storage, self.owner)
            self._relay.start()
        self.room = room(self.resources.gpu_type)
        self.total = self.room.total
        gpu, world = self.resources.gpu, self.resources.gpus_per_trial
        wanted = gpu if gpu is not None and (gpu == 0 or world == 1) else 1
        self.gpu = wanted if self.total["GPU"] else 0
        self._expect_room(world)

    def __exit__(self, *error: object) -> None:
        if self._relay:
            self._relay.end()
        leave()

    def _expect_room(self, world: int) -> None:
        """Ray would wait for ever for what there is not."""
        cores, gpus = self.total["CPU"], self.total["GPU"]
        if world > 1 and (cores < world or (self.gpu and gpus < world)):
            raise OtkdError(
                f"resources.gpus_per_trial: {world} processes a cohort need a core each, and a GPU each where there "
                f"are any; here are {cores:g} cores and {gpus:g} GPUs. Ask for fewer, or name a cluster with --address."
            )

    def slots(self, cpu: float) -> int:
        """As many as cores and GPUs allow; at least one."""
        return max(1, self.room.fits(self._cpu(cpu), self.gpu) // self.resources.gpus_per_trial)

    def sent(self, cpu: float) -> dict[str, Any]:
        """The environment as workers get it; `received` reads it."""
        layout, data_dir = self.environment.layout, self.environment.data_dir
        return {
            "layout": None if self.storage else str(layout.root.resolve()),
            "storage": self.environment.mirror.url,
            "owner": self.owner,
            "data_dir": str(data_dir.resolve()) if data_dir else None,
            # Ray leaves GPUs visible to those who ask for none
            "device": self.environment.device if self.gpu else "cpu",
            "threads": threads(self._cpu(cpu), self.total["CPU"]),
            "workers": self.environment.workers,
            "checkpoint_s": self.environment.checkpoint_s,
            "compiled": self.environment.compiled,
            "heed_stop": self.environment.heed_stop,
            "deadline_s": self.environment.deadline_s,
        }

    def bundle(self, cpu: float) -> dict[str, float]:
        """What one process of a cohort claims of a node."""
        gpu, kind = self.gpu, self.resources.gpu_type
        return {"CPU": self._cpu(cpu), **({"GPU": gpu} if gpu else {}), **({TYPE + kind: CLAIM} if kind else {})}

    def overseer(self, listener: Listener, trials_of: Callable[[Any], Sequence[Trial]]) -> Overseer:
        """Who looks after Tune's trials."""
        return Overseer(self.environment.layout, self.resources.hung_s, trials_of, listener.note)

    def run(self, cohorts: Sequence[Sequence[Trial]], cpu: float, listener: Listener) -> None:
        """Train all, until somebody asks to stop; a cohort whose worker keeps dying is left for the next attempt.

        Raises:
            StorageError: nothing more can be written.
        """
        world = self.resources.gpus_per_trial
        space = {"environment": self.sent(cpu), "world": world, "here": self.address == HERE}
        courier = Courier(listener, self, self.overseer(listener, lambda trial: cohort(trial.config)))
        # where nothing can be added, who asks ahead only makes Ray start workers that end unused, one for each trial
        ahead = self.slots(cpu) if self.address == HERE else None
        left = [[trial.model_dump_json() for trial in cohort] for cohort in cohorts]
        while left and not courier.stop_all():
            space["cohort"] = tune.grid_search(left)
            self.fit(CohortTrainable, [self.bundle(cpu)] * world, space, courier, ahead)
            left = courier.take_unbegun()
        self.level(trial for members in cohorts for trial in members)

    def fit(
        self,
        trainable: type[CohortTrainable],
        bundles: list[dict[str, float]],
        space: dict[str, Any],
        courier: Courier,
        ahead: int | None,
        **options: Any,
    ) -> None:
        """Let Tune run all that `space` names, each in so many bundles of a placement group.

        Args:
            ahead: the most that ask for a worker before there is one for them; None for as many as Tune thinks best.
            options: further ones of `tune.TuneConfig`.

        Raises:
            StorageError: nothing more can be written.
        """
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory(bundles, strategy="PACK")),
            param_space=space,
            tune_config=tune.TuneConfig(
                reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id, **options
            ),
            run_config=tune.RunConfig(
                storage_path=str(self.environment.layout.ray.resolve()),
                failure_config=tune.FailureConfig(max_failures=self.resources.retries),
                callbacks=[courier],
                stop=courier,
                verbose=0,
            ),
        )
        with _asking_ahead(ahead):
            tuner.fit()
        if courier.refusal:
            raise StorageError(courier.refusal)

    def catch_up(self, trials: Iterable[Trial]) -> None:
        """Get what a lost worker has left, where that lies in a folder of its own: the driver's may be older.

        Raises:
            StorageError: the storage does not answer.
        """
        for trial in trials if self.storage else ():
            self.environment.mirror.fetch(self.environment.layout.trial(trial.key))

    def level(self, trials: Iterable[Trial]) -> None:
        """Get the ends of trials whose worker was lost before it could tell of them."""
        mirror, layout = self.environment.mirror, self.environment.layout
        if self.storage and isinstance(mirror, Storage):
            mirror.reconcile([layout.trial(trial.key) for trial in trials])

    def _cpu(self, cpu: float) -> float:
        """Cores of one process: as many as are asked for, or its share of all there are."""
        return min(cpu, max(self.total["CPU"] // self.resources.gpus_per_trial, 1), self.room.largest)


@contextmanager
def _asking_ahead(most: int | None) -> Iterator[None]:
    """Tune reads it from the environment alone."""
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ.update({} if most is None else {name: str(most)})
    try:
        yield
    finally:
        os.environ.pop(name, None)
        os.environ.update({} if before is None else {name: before})


class Courier(tune.Callback, tune.Stopper):
    """Carries what workers report to the driver's listener; stops all once the disk refuses, or somebody asks."""

    def __init__(self, listener: Listener, runner: RayRunner, overseer: Overseer) -> None:
        self._listener, self._runner, self._overseer = listener, runner, overseer
        self.refusal = ""
        self._has_worker: dict[str, bool] = {}
        """Tune's trial → False once its worker was lost, until it has another."""
        self._unbegun: list[list[str]] = []
        self._spared: set[str] = set()
        """First trials of the cohorts that did not count as failed, once each."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings so that it could restore them elsewhere; the listener stays here."""
        return {"refusal": self.refusal}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.refusal) or self._overseer.over

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:
        self._overseer.look(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._overseer.ended(trial)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.refusal = self.refusal or result.get("refusal", "")
        try:
            deliver(result.pop("events", ()), self._listener)
        except StorageError as error:  # raised here it would reach the user as Tune's error, not as ours
            self.refusal = str(error)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._has_worker[trial.trial_id] = True

    def take_unbegun(self) -> list[list[str]]:
        """The cohorts that Tune has given up since the last call, though they had no worker."""
        unbegun, self._unbegun = self._unbegun, []
        return unbegun

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._has_worker[trial.trial_id] = False
        self._listener.note(f"a worker was lost ({_reason(trial)}); its cohort goes on from the last checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._overseer.ended(trial)
        if not self._is_spared(trial):
            self._fail(trial)
            return
        if trial.trial_id not in self._has_worker:  # otherwise it was told
            self._listener.note(f"a worker was lost ({_reason(trial)}) before its cohort began; another one takes it")
        self._give_back(trial)

    def _is_spared(self, trial: Any) -> bool:
        """Whether it is to be tried again by another of Tune's trials.

        Tune gives a trial up whose worker is lost while it is being handed over by another trial, whatever may be
        retried, and counts one loss twice then.
        """
        if self._has_worker.get(trial.trial_id, False):
            return False
        first = trial.config["cohort"][0]
        known = first in self._spared
        self._spared.add(first)
        return not known

    def _give_back(self, trial: Any) -> None:
        self._unbegun.append(trial.config["cohort"])

    def _fail(self, trial: Any) -> None:
        trials, lost = cohort(trial.config), WorkerLostError(f"its worker was lost, again and again ({_reason(trial)})")
        try:
            self._runner.catch_up(trials)
            fail(trials, lost, self._runner.environment, self._listener)
        except StorageError as error:
            self.refusal = str(error)


def _reason(trial: Any) -> str:
    """The last line of what Ray knows about a failure."""
    lines = str(trial.get_error() or "").strip().splitlines()
    return lines[-1] if lines else "no reason is known"
