"""Times otkd's training engine beside its floor and a classic loop; `benchmarks/training` says how.

Also: cohorts of several sizes, seconds to a trial's first step and to load its data, memory of a trial, and with
`--sweep` a short sweep of CIFAR-100 with its trials one by one and as cohorts, which have to agree bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # in place of this folder, in which there is an `ot.py` as in POT

from benchmarks.ot import THREADS, conditions, save  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.training.scene import Place
    from benchmarks.transport.tables import Table
    from otkd.core.trial import Data

ABOUT = ("device", "threads", "torch", "Python", "date")
PAIRS = (("resnet8", "resnet20"), ("wrn_16_2", "wrn_40_2"))
"""Student and teacher."""
EFFORT = {("resnet8", "resnet20"): (12, 4), ("wrn_16_2", "wrn_40_2"): (4, 3)}
"""Steps of a round, and rounds; of other pairs as of the last."""
QUICK_EFFORT = (3, 2)
STARTS = 3
"""How often the start of a trial is timed."""
LEGEND = """\
± %: half the interquartile range of the engine's rounds. / floor, / classic: images/s of the engine over theirs.
loss off by: the engine's mean loss of its first epoch against the floor's on the same batches, relative.
images/s × members: every member sees every image. first_step_s: from the trainer's construction to the end of an epoch
of two steps, in a fresh process. pss: shared pages count as a part for each process. private: what no other shares."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when torch and NumPy are imported
        os.environ[name] = str(options.threads)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="otkd-bench-", ignore_cleanup_errors=True) as folder:
        run(options, Path(folder))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller pair alone, few steps")
    parser.add_argument("--pair", nargs=2, metavar=("STUDENT", "TEACHER"), help="this pair instead of both")
    parser.add_argument("--sweep", action="store_true", help="the short sweep of CIFAR-100, and nothing else")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads of every loop (2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of engine and floor")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("OTKD_DATA_DIR") or None, metavar="FOLDER")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/train-<device>.json and .md")
    options = parser.parse_args(arguments)
    if options.sweep and options.data_dir is None:
        parser.error("--sweep trains on CIFAR-100; name its folder: --data-dir FOLDER, or OTKD_DATA_DIR.")
    return options


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print tables as they come, then what they say of the targets; save them where asked to."""
    import torch

    from benchmarks.training.scene import Place
    from benchmarks.training.targets import verdicts
    from otkd.train.device import pick

    torch.set_num_threads(options.threads)
    place = Place(folder, options.data_dir, pick(options.device), options.threads, options.precision)
    about = described(options, place)
    texts = ["# Training engine: speed and memory\n\n" + "\n".join(f"- {k}: {v}" for k, v in about.items())]
    texts += [] if options.sweep else [LEGEND]
    print(*texts, sep="\n\n", flush=True)
    tables = []
    for table in measured(options, place):
        print(f"\n{table.markdown()}", flush=True)
        tables.append(table)
    if not options.sweep:
        tables.append(verdicts(tables, place.device.type == "cuda"))
        print(f"\n{tables[-1].markdown()}")
    if options.save:
        save("train-sweep" if options.sweep else "train", about, texts, tables)


def measured(options: argparse.Namespace, place: Place) -> Iterator[Table]:
    """Every table but the last."""
    from benchmarks.training import speed
    from benchmarks.training.scene import Scene
    from benchmarks.training.startup import startup
    from benchmarks.training.sweeps import compared

    if options.sweep:
        yield compared(place)
        return
    data = images(options)
    pairs = [tuple(options.pair)] if options.pair else PAIRS[:1] if options.quick else PAIRS
    for pair in pairs:
        steps, rounds = QUICK_EFFORT if options.quick else EFFORT.get(pair, EFFORT[PAIRS[-1]])
        yield from speed.tables(speed.clock(Scene(place, data, pair, steps), rounds))
    yield from startup(place, data, pairs[-1], 1 if options.quick else STARTS)


def images(options: argparse.Namespace) -> Data:
    from benchmarks.training.scene import usual_data

    return usual_data(options.data_dir, options.quick)


def described(options: argparse.Namespace, place: Place) -> dict[str, str]:
    """Where, when and with what."""
    from otkd.train.device import autocast_dtype

    about = {key: value for key, value in conditions(place.device).items() if key in ABOUT}
    dtype = str(autocast_dtype(place.precision, place.device) or "fp32").removeprefix("torch.")
    return about | {"torchvision": vision(), "data": images(options).name, "batch": "64", "engine and floor": dtype}


def vision() -> str:
    """The version that transforms the classic loop's images."""
    from benchmarks.transport.bench import installed

    return installed("torchvision")


if __name__ == "__main__":
    main()
