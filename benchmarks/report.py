"""Times the report of a sweep of 5,000 trials, its live page, and reading its curves; see `benchmarks/reporting`."""

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

ABOUT = ("device", "threads", "NumPy", "Python", "date")
PACKAGES = ("mlflow", "pandas", "pyarrow", "matplotlib", "streamlit")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a sweep in a folder that is removed, and report it."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when NumPy is imported
        os.environ[name] = "1"
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="otkd-bench-") as folder:
        run(options, Path(folder))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few trials")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/report-<device>.json and .md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print tables as they come, then what they say of the targets; save them where asked to."""
    import torch

    from benchmarks.reporting import pages, reading, times
    from benchmarks.reporting.store import FULL, QUICK, make
    from benchmarks.sweep import printed
    from benchmarks.training.speed import shown
    from benchmarks.training.targets import judged
    from benchmarks.transport.bench import installed
    from otkd.core.layout import Layout

    size, layout = QUICK if options.quick else FULL, Layout(folder)
    about = {key: value for key, value in conditions(torch.device("cpu")).items() if key in ABOUT}
    about |= {name: installed(name) or "not installed" for name in PACKAGES}
    texts = ["# The report of a large sweep\n\n" + "\n".join(f"- {key}: {value}" for key, value in about.items())]
    parts = (times, pages, reading)
    texts += [part.LEGEND for part in parts]
    print(*texts, sep="\n\n", flush=True)
    make(layout, size)
    tables = list(printed(table for part in parts for table in part.measure(layout, size)))
    records = [record for part in parts for target in part.TARGETS for record in judged(target, tables)]
    tables += printed([shown("targets", records)])
    if options.save:
        save("report", about, texts, tables)


if __name__ == "__main__":
    main()
