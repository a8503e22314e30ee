"""Where a result comes from: commit, package versions, device, host."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from otkd.train.device import describe

PACKAGES = ("otkd", "torch", "torchvision", "pot", "numpy", "ray", "mlflow")


def provenance(device: torch.device, dtype: torch.dtype | None) -> dict[str, str]:
    """Commit, dirty flag, versions, device, host and precision, as strings for the record."""
    return {
        **_code(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "host": platform.node(),
        "device": describe(device),
        "precision": "bf16" if dtype is torch.bfloat16 else "fp32",
    }


@cache
def _code() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {"commit": "unknown", "dirty": "unknown"}
    return {"commit": commit, "dirty": str(bool(_git("status", "--porcelain"))).lower()}


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
