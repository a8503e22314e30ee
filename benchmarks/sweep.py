"""Times a sweep beside its training: 200 trials of a second, and the records of 2,000; see `benchmarks/sweeping`."""

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
    from benchmarks.transport.tables import Table

PARTS = ("trials", "tracking")
ABOUT = ("device", "threads", "torch", "Python", "date")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that were asked for in a folder that is removed."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when torch and NumPy are imported
        os.environ[name] = "1"
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="otkd-bench-") as folder:
        run(options, Path(folder))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sweep-<device>.json and .md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print tables as they come, then what they say of the targets; save them where asked to."""
    import torch

    from benchmarks.sweeping import tracking, trials
    from benchmarks.training.speed import shown
    from benchmarks.training.targets import judged

    parts = {"trials": trials, "tracking": tracking}
    chosen = [parts[name] for name in options.only]
    about = {key: value for key, value in conditions(torch.device("cpu")).items() if key in ABOUT}
    texts = ["# A sweep beside its training\n\n" + "\n".join(f"- {key}: {value}" for key, value in about.items())]
    texts += [part.LEGEND for part in chosen]
    print(*texts, sep="\n\n", flush=True)
    tables = list(printed(table for part in chosen for table in part.measure(folder, options.quick)))
    records = [record for part in chosen for target in part.TARGETS for record in judged(target, tables)]
    tables += printed([shown("targets", records)])
    if options.save:
        save("sweep", about, texts, tables)


def printed(tables: Iterator[Table] | list[Table]) -> Iterator[Table]:
    """Tables, each printed as it comes."""
    for table in tables:
        print(f"\n{table.markdown()}", flush=True)
        yield table


if __name__ == "__main__":
    main()
