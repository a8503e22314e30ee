"""A small sweep by the command line, what can be done to it while it runs, and what has to hold afterwards."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.error import URLError
from urllib.request import urlopen

import torch
import yaml
from mlflow import MlflowClient
from torch import Tensor

import otkd.train.engine as engine
from otkd import cli
from otkd.core import names
from otkd.core.layout import Layout

EPOCHS = 8
QUESTION: dict[str, Any] = {
    "name": "small",
    "question": "Is anything lost?",
    "data": {"name": "digits", "val": 0.2, "limit": 240},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "train": {"epochs": EPOCHS, "batch_size": 16, "schedule": {"name": "constant"}},
    "methods": {"student": {"ce": 1}, "ot": {"ce": 1, "transport": 1}},
    "seeds": [0, 1],
    "resources": {"cohort": 1, "retries": 2},
}
"""A teacher and four students of a second or so each, every one trained alone."""
TRIALS = 1 + 2 * 2
HERE = "--local"
"""Without Ray: where no worker is hurt, so that the whole suite takes minutes."""

SAVING = 0.5
"""Share of the time that may go into checkpoints: a trial has many, however fast the machine is."""
FOREIGN = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "OTKD_DATA_DIR", "OTKD_RUNS", "RAY_ADDRESS")
STEADY = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200"}

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["otkd.cli", "otkd.sweep.session", "otkd.report.render", "otkd.train.engine"])

Event = dict[str, Any]
Found = TypeVar("Found")


class Command:
    """The command line in a process of its own, that leads a group of processes as one in a terminal does.

    It is forked from a process that has imported what the command needs, but for Ray: to import takes longer than to
    train here.

    Args:
        words: what stands behind `otkd`.
        log: gets what it says, at its end.
    """

    def __init__(self, words: Sequence[object], log: Path, variables: Mapping[str, str]) -> None:
        self._process = FORK.Process(target=_command, args=([*map(str, words)], log, environment(variables)))
        self._process.start()
        self.pid = cast(int, self._process.pid)

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = 300) -> int:
        """Its exit status, once it has ended."""
        self._process.join(seconds)
        status = self.poll()
        assert status is not None, f"it runs after {seconds:.0f} s still"
        return status

    def kill(self) -> None:
        """SIGKILL of this process alone."""
        self._process.kill()
        self._process.join()


def _command(words: list[str], log: Path, variables: Mapping[str, str]) -> None:
    """What a forked process does."""
    os.setsid()
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    sys.argv = ["otkd", *words]
    engine.SAVING = SAVING
    engine.Environment = partial(engine.Environment, checkpoint_s=0.0)  # type: ignore[assignment, misc]
    try:
        cli.main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


class Sweep:
    """A sweep in a folder of its own, whose one command can be started many times.

    Args:
        folder: gets the sweep file, `runs/` and everything that the command says.
        words: options of the command beyond `--runs`.
        variables: of the command's environment.
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        variables: Mapping[str, str] | None = None,
        question: Mapping[str, Any] = QUESTION,
    ) -> None:
        self.layout, self.name = Layout(folder / "runs"), str(question["name"])
        self.words, self.variables = words, dict(variables or {})
        self.file, self.log = folder / "sweep.yaml", folder / "output.txt"
        self.file.write_text(yaml.safe_dump(dict(question), sort_keys=False), encoding="utf-8")
        self.log.touch()
        self.drivers: list[Command] = []
        self._begin = 0

    def provide(self, database: Path) -> None:
        """Have it begin with this database of MLflow."""
        self.layout.root.mkdir(exist_ok=True)
        shutil.copy(database, self.layout.database)

    @property
    def driver(self) -> Command:
        """The last one started."""
        return self.drivers[-1]

    @property
    def output(self) -> str:
        """What the last driver has said."""
        return self.log.read_bytes()[self._begin :].decode()

    @property
    def uri(self) -> str:
        """Where its records are."""
        return self.variables.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.layout.database.resolve()}"

    def start(self, *words: str) -> Sweep:
        """Start the command, with further options."""
        self._begin = self.log.stat().st_size
        command = ("sweep", self.file, "--runs", self.layout.root, *self.words, *words)
        self.drivers.append(Command(command, self.log, self.variables))
        return self

    def wait(self, seconds: float = 300) -> int:
        """The driver's exit status."""
        return self.driver.wait(seconds)

    def finish(self, *words: str) -> str:
        """Start the command, and have it end well. Returns what it said."""
        assert self.start(*words).wait() == 0, self.output
        return self.output

    def wait_until(self, condition: Callable[[], Found], seconds: float = 300) -> Found:
        """What is waited for, while the driver runs; fail when it ends or nothing comes."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert self.driver.poll() is None, f"the driver has ended:\n{self.output}"
            assert time.monotonic() < deadline, f"nothing happened for {seconds:.0f} s:\n{self.output}"
            time.sleep(0.02)
        return found

    def until_epochs(self, count: int) -> Sweep:
        """Wait until the journal has so many epochs, of all trials; fail when it is late, and has all of them."""
        self.wait_until(lambda: self.epochs >= count)
        self.expect_unfinished()
        return self

    def expect_unfinished(self) -> None:
        """It is in the middle: the teacher or some students have not ended."""
        assert len(self.journal("finish")) < TRIALS, "too late: all is trained"

    @property
    def epochs(self) -> int:
        """Epochs in the journal."""
        return len(self.journal("epoch"))

    def journal(self, kind: str) -> list[Event]:
        """Whole lines of the journal of one kind."""
        path = self.layout.records / f"{self.name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n") and f'"event": "{kind}"' in line]

    def kill(self) -> None:
        """SIGKILL of the driver alone; what it leaves behind has to end by itself."""
        self.driver.kill()

    def crash(self) -> None:
        """SIGKILL of everything at once, as when the machine goes down."""
        for pid in (self.driver.pid, *below(self.driver.pid)):
            end(pid)
        self.driver.wait()

    def ctrl_c(self) -> None:
        """As a terminal does it: all processes of the command hear it."""
        os.killpg(self.driver.pid, signal.SIGINT)

    def close(self) -> None:
        """End whatever is left of it."""
        if self.drivers and self.driver.poll() is None:
            self.crash()


class Reference(NamedTuple):
    """What an undisturbed run leaves, as far as it is determined."""

    weights: dict[str, dict[str, Tensor]]
    """Trial key → its last weights."""
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """Trial key → metric → (epoch, value)."""
    roles: dict[str, int]


DETERMINED = (names.TRAIN_LOSS, names.TRAIN_TOP1, names.VAL_LOSS, names.VAL_TOP1)


def reference(sweep: Sweep) -> Reference:
    """What another run of the same sweep is held against."""
    curves = {key: {name: found[name] for name in DETERMINED} for key, found in histories(sweep).items()}
    return Reference(weights(sweep.layout), curves, Counter(map(role, runs(sweep))))


def check(sweep: Sweep, expected: Reference) -> None:
    """Nothing is lost, nothing is there twice, and the weights are those of an undisturbed run, bit for bit."""
    check_records(sweep, expected)
    check_journal(sweep, expected.weights)
    check_weights(weights(sweep.layout), expected.weights)
    assert (sweep.layout.reports / sweep.name / "report.html").stat().st_size > 0


def check_records(sweep: Sweep, expected: Reference) -> None:
    """One finished run for each trial; every metric of an epoch once in it, with the right value."""
    found = histories(sweep)
    assert Counter(map(role, runs(sweep))) == expected.roles, "each trial has one run"
    assert {run.info.status for run in runs(sweep)} == {"FINISHED"}
    assert found.keys() == expected.curves.keys()
    for key, curves in found.items():
        for name, points in curves.items():
            steps = [step for step, _ in points]
            assert len(set(steps)) == len(steps), f"{name} of {key} is there twice: {steps}"
        assert {name: curves[name] for name in DETERMINED} == expected.curves[key]
        assert [step for step, _ in curves[names.TRAIN_LOSS]] == list(range(1, EPOCHS + 1))


def check_journal(sweep: Sweep, keys: Iterable[str]) -> None:
    """Every epoch of every trial once, and one end."""
    epochs = Counter((event["key"], event["epoch"]) for event in sweep.journal("epoch"))
    assert epochs == Counter((key, epoch) for key in keys for epoch in range(1, EPOCHS + 1))
    ends = Counter(event["key"] for event in sweep.journal("finish"))
    assert ends == Counter(list(keys)), f"{sweep.journal('finish')}\n{sweep.output}"


def check_weights(found: Mapping[str, dict[str, Tensor]], expected: Mapping[str, dict[str, Tensor]]) -> None:
    assert found.keys() == expected.keys()
    for key, tensors in expected.items():
        different = [name for name, tensor in tensors.items() if not torch.equal(tensor, found[key][name])]
        assert not different, f"{key} has other weights than undisturbed: {different[:3]}"


def weights(layout: Layout) -> dict[str, dict[str, Tensor]]:
    """Last weights of every trial that has ended."""
    files = layout.trials.glob("*/last.pt")
    return {file.parent.name: torch.load(file, weights_only=True) for file in files}


def runs(sweep: Sweep) -> list[Any]:
    """All runs that MLflow has."""
    client = MlflowClient(sweep.uri)
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=5000))


def role(run: Any) -> str:
    """`sweep`, or the trial's key."""
    return str(run.data.tags.get(names.TAG_KEY, run.data.tags[names.TAG_KIND]))


def histories(sweep: Sweep) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Trial key → metric → (epoch, value), as MLflow has them."""
    client = MlflowClient(sweep.uri)
    return {
        role(run): {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        for run in runs(sweep)
        if role(run) != "sweep"
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**inherited, **STEADY, **variables}


def otkd(folder: Path, *words: object) -> tuple[int, str]:
    """Run another command to its end, as from a second terminal. Returns its exit status, and what it has said."""
    log = folder / "second-terminal.txt"
    log.write_text("", encoding="utf-8")
    return Command(words, log, {}).wait(), log.read_text(encoding="utf-8")


def processes() -> Iterator[tuple[int, int, str]]:
    """(pid, parent's pid, what it calls itself) of everything that runs."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    for row in rows.splitlines():
        pid, parent, state, *args = row.split(maxsplit=3)
        if not state.startswith("Z"):
            yield int(pid), int(parent), args[0] if args else ""


def below(pid: int) -> dict[int, str]:
    """Processes below one, by id, with what they call themselves."""
    children: dict[int, dict[int, str]] = {}
    for child, parent, args in processes():
        children.setdefault(parent, {})[child] = args
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        for child, args in children.get(todo.pop(), {}).items():
            found[child] = args
            todo.append(child)
    return found


def training(pid: int) -> list[int]:
    """Ray's workers below a process that have an actor of ours."""
    return [child for child, args in below(pid).items() if args.startswith("ray::") and "Trainable" in args]


def end(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def wait_gone(pids: set[int], seconds: float = 120) -> None:
    """Until none of these processes is left."""
    deadline = time.monotonic() + seconds
    while left := pids & {pid for pid, _, _ in processes()}:
        assert time.monotonic() < deadline, f"processes {left} did not end"
        time.sleep(0.1)


class Server:
    """A real `mlflow server` on SQLite, which can be killed and started again.

    Args:
        database: with MLflow's tables and nothing in them.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        shutil.copy(database, folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers later."""
        places = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        places += ["--artifacts-destination", str(self.folder / "kept")]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1", *places],
                env=environment({"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}),  # eight more processes
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 300) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "server.txt").read_text()
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.uri}/health", timeout=2).close()
        except (URLError, OSError):
            return False
        return True


@contextmanager
def served(folder: Path, database: Path) -> Iterator[Server]:
    """A server that answers, until the block ends."""
    server = Server(folder, database)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
