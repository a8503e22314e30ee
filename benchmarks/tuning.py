"""Successive halving beside the whole grid, on `sweeps/tune_transport.yaml`; `benchmarks/sweeping/halving` says how."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # in place of this folder, in which there is an `ot.py` as in POT

from benchmarks.ot import THREADS, conditions, save  # noqa: E402

ABOUT = ("device", "torch", "Python", "date")


def main(arguments: Sequence[str] | None = None) -> None:
    """Search both ways in a folder that is removed."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when torch and NumPy are imported
        os.environ[name] = "1"
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="otkd-bench-", ignore_cleanup_errors=True) as folder:
        run(options, Path(folder))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few configurations, images and epochs")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("OTKD_DATA_DIR") or None, metavar="FOLDER")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/tuning-<device>.json and .md")
    options = parser.parse_args(arguments)
    if options.data_dir is None:
        parser.error("the sweep is of CIFAR-100; name its folder: --data-dir FOLDER, or OTKD_DATA_DIR.")
    return options


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print tables as they come, then what they say of the targets; save them where asked to."""
    import torch

    from benchmarks.sweep import printed
    from benchmarks.sweeping.halving import FULL, LEGEND, QUICK, TARGETS, described, measure
    from benchmarks.training.speed import shown
    from benchmarks.training.targets import judged

    size = QUICK if options.quick else FULL
    about = {key: value for key, value in conditions(torch.device("cpu")).items() if key in ABOUT} | described(size)
    texts = ["# A search beside the whole grid\n\n" + "\n".join(f"- {key}: {value}" for key, value in about.items())]
    texts += [LEGEND]
    print(*texts, sep="\n\n", flush=True)
    tables = list(printed(measure(folder, options.data_dir, size)))
    records = [record for target in TARGETS for record in judged(target, tables)]
    tables += printed([shown("targets", records)])
    if options.save:
        save("tuning", about, texts, tables)


if __name__ == "__main__":
    main()
