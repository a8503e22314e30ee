"""Times otkd's transport solvers beside those of other packages; `benchmarks/transport` says how."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)  # in place of this folder, where this file shares its name with POT's package

if TYPE_CHECKING:
    import torch

    from benchmarks.transport.sections import Plan
    from benchmarks.transport.tables import Table

SECTIONS = ("step", "every", "exact", "sliced", "gaussian", "sinkhorn", "divergence")
SIZES, QUICK_SIZES = (64, 128, 256, 512, 1024), (64, 128)
WIDTHS, QUICK_WIDTHS = (64, 256, 2048), (64,)
MINUTES = 11
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that were asked for."""
    options = parsed(arguments)
    for name in THREADS:  # read once, when torch and NumPy are imported
        os.environ[name] = str(options.threads)
    warnings.simplefilter("ignore")  # what peers warn of shows in their errors
    run(options)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    sizes, widths = (" ".join(map(str, usual)) for usual in (SIZES, WIDTHS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats, under a minute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help=f"numbers of points ({sizes})")
    parser.add_argument("--widths", nargs="+", type=int, metavar="D", help=f"dimensions ({widths})")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of torch and NumPy (1)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"begin no new row after so long ({MINUTES})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ot-<device>.json and .md")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Print tables as they come, then what they say of the targets; save them where asked to."""
    from benchmarks.transport.sections import SECTIONS as WAYS
    from benchmarks.transport.tables import LEGEND
    from benchmarks.transport.targets import verdicts

    plan = planned(options)
    about = conditions(plan.device)
    texts = ["# Transport solvers: speed\n\n" + "\n".join(f"- {key}: {value}" for key, value in about.items()), LEGEND]
    print(*texts, sep="\n\n", flush=True)
    tables: list[Table] = []
    for section in options.only or SECTIONS:
        for table in WAYS[section](plan):
            print(f"\n{table.markdown()}", flush=True)
            tables.append(table)
    summary = list(verdicts(tables))
    print(*(f"\n{table.markdown()}" for table in summary), sep="\n")
    if options.save:
        save("ot", about, texts, [*tables, *summary])


def planned(options: argparse.Namespace) -> Plan:
    from benchmarks.transport.sections import Plan, quick
    from otkd.train.device import pick

    sizes = tuple(sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES)))
    widths = tuple(options.widths or (QUICK_WIDTHS if options.quick else WIDTHS))
    make = quick if options.quick else Plan
    return make(pick(options.device), sizes, widths, deadline=time.monotonic() + 60 * options.minutes)


def conditions(device: torch.device) -> dict[str, str]:
    """Where, when and with what."""
    import torch

    from benchmarks.transport.bench import installed

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    packages = {"torch": "torch", "NumPy": "numpy", "POT": "pot"}
    packages |= {name: name for name in ("geomloss", "flash-sinkhorn")}
    return {
        "device": f"{name} ({device.type})",
        "threads": threads(),
        **{key: installed(package) or "not installed" for key, package in packages.items()},
        "Python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def threads() -> str:
    """How many torch and every library under NumPy say that they use: one number where they agree."""
    import torch

    pools = import_module("threadpoolctl").threadpool_info()  # comes with scikit-learn
    found = {"torch": torch.get_num_threads()}
    found |= {f"{pool['internal_api']} {pool['prefix']}": pool["num_threads"] for pool in pools}
    if len(set(found.values())) == 1:
        return str(found["torch"])
    return ", ".join(f"{name} {count}" for name, count in found.items())


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def save(kind: str, about: Mapping[str, str], texts: Sequence[str], tables: Sequence[Table]) -> None:
    slug = re.sub(r"[^a-z0-9]+", "-", about["device"].lower()).strip("-")
    path = HERE / "results" / f"{kind}-{slug}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"conditions": about, "tables": [{"title": table.title, "records": table.records} for table in tables]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    whole = "\n\n".join([*texts, *(table.markdown() for table in tables)])
    path.with_suffix(".md").write_text(whole + "\n", encoding="utf-8")
    print(f"\nwritten: {path} and .md")


if __name__ == "__main__":
    main()
