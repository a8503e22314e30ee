"""How long a trial takes to begin and how much memory it needs, in processes of its own.

`python -m benchmarks.training.startup REQUEST` is such a process: it loads the data, trains and measures one student,
says `ready`, and when it is told to (a line on its input), what memory it holds.
"""

from __future__ import annotations

import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch

from benchmarks.training.loops import Quiet
from benchmarks.training.scene import METHODS, Place, Scene
from benchmarks.training.speed import shown
from benchmarks.transport.tables import Table
from otkd.core.layout import Layout
from otkd.core.trial import Data
from otkd.data.pipeline import prepare
from otkd.train import CohortTrainer, Environment

ROOT = Path(__file__).resolve().parents[2]
STEPS = 1
"""Full batches of an epoch: as few as there can be with an image of every class, which takes two batches."""
ROLLUP, STATUS = Path("/proc/self/smaps_rollup"), Path("/proc/self/status")


def startup(place: Place, data: Data, pair: tuple[str, str], rounds: int) -> Iterator[Table]:
    """Tables of seconds and of memory."""
    Scene(place, data, pair, STEPS).train_teacher()
    request = json.dumps({"data": data.model_dump(mode="json"), "pair": pair, **plain(place)})
    alone = [measured([request])[0] for _ in range(rounds)]
    seconds = {name: statistics.median(one[name] for one in alone) for name in ("load_s", "first_step_s")}
    about = f"{' ← '.join(pair)}, {data.name}"
    yield shown(f"start of a trial: {about}", [seconds])
    records = [memory("one", alone[-1:]), memory("two at once", measured([request, request]))]
    yield shown(f"memory of a trial in MiB: {about}", records)


def memory(processes: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest of several processes."""
    names = ("peak_rss_mib", "rss_mib", "pss_mib", "private_mib")
    return {"processes": processes, **{name: largest([one[name] for one in found]) for name in names}}


def largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)


def measured(requests: Sequence[str]) -> list[dict[str, Any]]:
    """What processes say that run at the same time and are all alive when the first is asked."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(request)) for request in requests]
        for process in processes:
            expect(process, "ready")
        return [json.loads(ask(process)) for process in processes]


@contextmanager
def started(request: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    command = [sys.executable, "-m", "benchmarks.training.startup", request]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=PIPE, stdout=PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"a trial in a process of its own ended early (said {line!r}); its error stands above.")


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def plain(place: Place) -> dict[str, Any]:
    """A place as JSON has it."""
    data_dir = None if place.data_dir is None else str(place.data_dir.absolute())
    changed = {"root": str(place.root.absolute()), "data_dir": data_dir, "device": str(place.device)}
    return {"place": {**place._asdict(), **changed}}


def place_of(given: dict[str, Any]) -> Place:
    data_dir = None if given["data_dir"] is None else Path(given["data_dir"])
    changed = {"root": Path(given["root"]), "data_dir": data_dir, "device": torch.device(given["device"])}
    return Place(**{**given, **changed})


def serve(request: dict[str, Any]) -> None:
    """One trial, from its data to its test accuracy."""
    place, data = place_of(request["place"]), Data.model_validate(request["data"])
    torch.set_num_threads(place.threads)
    scene = Scene(place, data, tuple(request["pair"]), STEPS)
    found = {"load_s": seconds_to_load(place, scene.data), "first_step_s": seconds_to_train(place, scene)}
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({**found, **held()}), flush=True)
    sys.stdin.readline()  # stays until it is ended, so that all share while others are asked


def seconds_to_load(place: Place, data: Data) -> float:
    begin = time.perf_counter()
    prepare(data, data_dir=place.data_dir, cache_dir=Layout(place.root).cache)
    return time.perf_counter() - begin


def seconds_to_train(place: Place, scene: Scene) -> float:
    """Seconds to the end of the first epoch of two steps; the trial goes on to its end."""
    trial = scene.trial(METHODS["kd"], epochs=2)
    own = Layout(place.root / f"startup-{time.time_ns()}")  # each trains from the beginning
    own.trials.mkdir(parents=True)
    own.cache.symlink_to(scene.layout.cache)
    (own.trials / scene.teacher_trial.key).symlink_to(scene.layout.trial(scene.teacher_trial.key).path)
    environment = Environment(layout=own, data_dir=place.data_dir, device=str(place.device), threads=place.threads)
    begin = time.perf_counter()
    trainer = CohortTrainer([trial], Quiet(), environment)
    trainer.step()
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    seconds = time.perf_counter() - begin
    trainer.step()
    result = trainer.results[trial.key]
    if result.status != "finished":
        raise RuntimeError(f"the trial {result.status}: {result.reason}")
    return seconds


def held() -> dict[str, float | None]:
    """Memory of this process in MiB: resident at most and now, its share of what is shared, and what is its own."""
    kib = kibibytes(ROLLUP)
    private = kib["Private_Clean"] + kib["Private_Dirty"] if kib else None
    return {
        "peak_rss_mib": peak_kib() / 1024,
        "rss_mib": kib["Rss"] / 1024 if kib else None,
        "pss_mib": kib["Pss"] / 1024 if kib else None,
        "private_mib": private / 1024 if private is not None else None,
    }


def peak_kib() -> int:
    """Most memory resident so far. Linux gives a new process its parent's `ru_maxrss`, so that is the second choice."""
    return kibibytes(STATUS).get("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kibibytes(account: Path) -> dict[str, int]:
    """The lines of one of the kernel's accounts that are in KiB; none where there is no such file."""
    text = account.read_text(encoding="utf-8") if account.exists() else ""
    return {name: int(count) for name, count in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
