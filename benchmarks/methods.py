"""Times a training step with every loss of otkd beside one with ce + kd, and says what memory and parameters it adds.

A step is as training makes it: the teacher's forward pass, the student's, the term with ce, backward, SGD. All methods
of a pair stand side by side in one process, rounds alternate over them. The teacher's pass, the same for all, is timed
as one call more of each round and added to the methods that look at it. Images are random, as many and of as many
classes as CIFAR-100's. A method that trains something before the main stage has a row for each stage. Memory is the
peak of a step (without the teacher's pass) beyond what stood before, less that of ce + kd; parameters are those trained
beside the student's.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # in place of this folder, in which there is an `ot.py` as in POT

from benchmarks.ot import THREADS, conditions, save  # noqa: E402
from otkd.core import plugins  # noqa: E402
from otkd.core.errors import Problem  # noqa: E402

if TYPE_CHECKING:
    import torch
    from torch import nn

    from benchmarks.transport.tables import Table
    from otkd.core.cards import DataCard
    from otkd.core.output import Batch, ModelOutput
    from otkd.losses.base import Probe
    from otkd.train.student import Student

Terms = dict[str, dict[str, Any]]

BASE: Terms = {"ce": {}, "kd": {}}
PAIRS = (("resnet8", "resnet20"), ("wrn_16_2", "wrn_40_2"))
"""Student and teacher."""
DATA, BATCH = "cifar100", 64
REPEATS, QUICK_REPEATS = 11, 3
ABOUT = ("device", "threads", "torch", "Python", "date")
LEGEND = """\
ms: median ± half the interquartile range of a step without the teacher's pass. step ms: with it, where it is needed.
/ kd: step ms over that of ce + kd. MiB: peak of a step beyond that of ce + kd.
parameters: trained beside the student's."""


class Method(NamedTuple):
    """An objective, or a stage before its main one."""

    terms: Terms
    stage: int | None = None
    """Which of its stages; None for the main one."""
    name: str = ""
    """The stage's name."""

    @property
    def label(self) -> str:
        return " + ".join(self.terms) + (f", stage {self.name}" if self.name else "")


class Entry(NamedTuple):
    """A method that is ready to be timed."""

    label: str
    step: Callable[[], None]
    looks: bool
    """Whether it needs the teacher's pass."""
    parameters: int


class Scene(NamedTuple):
    """What all methods of a pair share."""

    student: str
    teacher: nn.Module
    card: DataCard
    batch: Batch
    labels_N: torch.Tensor


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the pairs that were asked for."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when torch and NumPy are imported
        os.environ[name] = str(options.threads)
    warnings.simplefilter("ignore")
    run(options)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller pair alone, few repeats")
    parser.add_argument("--pair", nargs=2, metavar=("STUDENT", "TEACHER"), help="this pair instead of both")
    parser.add_argument("--only", nargs="+", metavar="TERM", help="these losses instead of all")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of torch and NumPy (1)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/methods-<device>.json and .md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print a table for each pair as it comes; save them where asked to."""
    from otkd.train.device import pick

    device = pick(options.device)
    about = {key: value for key, value in conditions(device).items() if key in ABOUT} | {"batch": str(BATCH)}
    lines = "\n".join(f"- {key}: {value}" for key, value in about.items())
    texts = [f"# Losses: cost of a training step\n\n{lines}", LEGEND]
    print(*texts, sep="\n\n", flush=True)
    pairs = [options.pair] if options.pair else PAIRS[:1] if options.quick else PAIRS
    tables = []
    for pair in pairs:
        tables.append(table(pair, options.only, device, QUICK_REPEATS if options.quick else REPEATS))
        print(f"\n{tables[-1].markdown()}", flush=True)
    if options.save:
        save("methods", about, texts, tables)


def objectives(names: Sequence[str]) -> list[Terms]:
    """The base, and every term beside ce."""
    others: list[Terms] = [{"ce": {}, name: {}} for name in names]
    return [BASE, *(terms for terms in others if terms != BASE)]


def problems(terms: Terms, pair: tuple[str, str]) -> list[Problem]:
    """What this pair of networks makes impossible."""
    student, teacher = (plugins.head("models", plugins.family_of(name)).CARDS[name] for name in pair)
    found = []
    for name, options in terms.items():
        found += plugins.configure("losses", name, options).check(student, teacher)
    return found


def table(pair: tuple[str, str], only: Sequence[str] | None, device: torch.device, repeats: int) -> Table:
    """All methods on one pair; a method that cannot run says why."""
    from benchmarks.transport.bench import excuse
    from benchmarks.transport.tables import Table

    shared, entries, refused = scene(pair, device), [], []
    for terms in objectives(only or plugins.names("losses")):
        why = problems(terms, pair)
        if why:
            refused.append(refusal(Method(terms).label, "; ".join(map(str, why))))
            continue
        try:
            entries += list(prepared(shared, terms))
        except Exception as error:
            if terms == BASE:
                raise
            refused.append(refusal(Method(terms).label, excuse(error)))
    records = [*measured(shared, entries, device, repeats), *refused]
    return Table(f"{pair[0]} ← {pair[1]}", [row(record) for record in records], records)


def scene(pair: tuple[str, str], device: torch.device) -> Scene:
    """Random images of known classes, and a teacher with random weights."""
    import torch

    from otkd.core.output import Batch
    from otkd.models.factory import create

    card: DataCard = plugins.head("data", DATA).CARD
    generator = torch.Generator().manual_seed(0)
    labels_N = (torch.arange(card.train) % card.classes).to(device)
    image = torch.randn(BATCH, card.channels, card.side, card.side, generator=generator)
    image = image.to(device, memory_format=torch.channels_last)
    indices = torch.randperm(card.train, generator=generator)[:BATCH].to(device)
    teacher = create(pair[1], classes=card.classes, channels=card.channels, seed=1).eval().requires_grad_(False)
    teacher.to(device).to(memory_format=torch.channels_last)
    return Scene(pair[0], teacher, card, Batch(image, labels_N[indices], indices), labels_N)


def prepared(shared: Scene, terms: Terms) -> Iterator[Entry]:
    """The main stage of an objective and each stage before it, after one step that warms up."""
    import torch

    with torch.no_grad():
        out_t = shared.teacher(shared.batch.image)
    main_stage = Method(terms)
    stages = built(shared, main_stage).stages
    for method in (main_stage, *(Method(terms, index, stage.name) for index, stage in enumerate(stages))):
        student = built(shared, method)
        step = partial(student.train_step, shared.batch, out_t, 10**6)
        step()
        parameters = sum(p.numel() for p in student.objective.parameters() if p.requires_grad)
        yield Entry(method.label, step, student.needs_teacher, parameters)


def built(shared: Scene, method: Method) -> Student:
    """A student at the first step of the method's stage, as the engine makes one."""
    import torch

    from otkd.core.layout import Layout
    from otkd.train.device import autocast_dtype
    from otkd.train.student import Student

    image_2CHW = shared.batch.image[:2]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        student = Student(
            trial(shared.student, method.terms),
            Layout(folder),
            image_2CHW=image_2CHW,
            probe=probing(shared, shared.teacher(image_2CHW)),
            card=shared.card,
            dtype=autocast_dtype("auto", image_2CHW.device),
        )
    show(student, shared)
    student.tick = tick(method.stage, [stage.epochs for stage in student.stages])
    student.begin_epoch()
    return student


def tick(stage: int | None, epochs: Sequence[int]) -> int:
    """Where a stage begins on the student's clock, on which the main one begins at 1."""
    return 1 if stage is None else 1 - sum(epochs[stage:])


def trial(student: str, terms: Terms) -> Any:
    """A learning rate at which random images do no harm within a few steps."""
    from otkd.core.trial import Trial

    train = {"epochs": 1, "schedule": {"name": "constant"}, "optimizer": {"name": "sgd", "lr": 1e-6}}
    return Trial.model_validate(
        {"data": {"name": DATA}, "student": {"name": student}, "objective": terms, "train": train}
    )


def probing(shared: Scene, out_t: ModelOutput) -> Callable[[ModelOutput], Probe]:
    """What the engine lets terms know."""
    from otkd.losses.base import Probe
    from otkd.train.teacher import facts

    known = {"classes": shared.card.classes, "labels_N": shared.labels_N, "batch_size": BATCH}
    return partial(Probe, teacher=out_t, **known, **facts(shared.teacher, shared.card.classes))


def show(student: Student, shared: Scene) -> None:
    """What a term wants to see before training: here two images of every class."""
    import torch

    if not student.to_prepare:
        return
    with torch.no_grad():
        for indices in torch.arange(2 * shared.card.classes, device=shared.labels_N.device).split(BATCH):
            images = shared.batch.image[: len(indices)]
            batch = shared.batch._replace(image=images, target=shared.labels_N[indices], indices=indices)
            student.observe(batch, shared.teacher(images))
    student.prepare(0.0)


def measured(shared: Scene, entries: Sequence[Entry], device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Times of interleaved rounds, then memory."""
    import torch

    from benchmarks.transport.measure import Effort, alternate, peak_mib

    def teach() -> None:
        with torch.no_grad():
            shared.teacher(shared.batch.image)

    calls = {"": teach, **{entry.label: entry.step for entry in entries}}
    times = alternate(calls, Effort(repeats, math.inf, math.inf), device)
    mib = {entry.label: peak_mib(entry.step, device) for entry in entries}
    return compared(entries, times, mib)


def compared(
    entries: Sequence[Entry], times: Mapping[str, Sequence[float]], mib: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Records; the first entry is what others are held against, the teacher's times stand under the empty name."""
    from benchmarks.transport.measure import spread

    teacher_ms = statistics.median(times[""])
    own_ms = {entry.label: statistics.median(times[entry.label]) for entry in entries}
    step_ms = {entry.label: own_ms[entry.label] + entry.looks * teacher_ms for entry in entries}
    base = entries[0].label
    return [
        {
            "method": entry.label,
            "ms": own_ms[entry.label],
            "spread_ms": spread(times[entry.label]),
            "step_ms": step_ms[entry.label],
            "over_kd": step_ms[entry.label] / step_ms[base],
            "mib_beyond_kd": mib[entry.label] - mib[base],
            "parameters": entry.parameters,
            "note": "",
        }
        for entry in entries
    ]


def refusal(label: str, why: str) -> dict[str, Any]:
    """The record of a method that cannot run."""
    figures = ("ms", "spread_ms", "step_ms", "over_kd", "mib_beyond_kd", "parameters")
    return {"method": label, **dict.fromkeys(figures), "note": why}


def row(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as a line of its table."""
    from benchmarks.transport.tables import number

    spread = "" if record["ms"] is None else f"±{number(record['spread_ms'], 2)}"
    parameters = record["parameters"]
    return {
        "method": record["method"],
        "ms": number(record["ms"]) + spread,
        "step ms": number(record["step_ms"]),
        "/ kd": number(record["over_kd"]),
        "MiB": number(record["mib_beyond_kd"]),
        "parameters": "–" if parameters is None else str(parameters),
        "note": record["note"].replace("|", "/"),
    }


if __name__ == "__main__":
    main()
