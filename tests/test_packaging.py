"""What surrounds the code: the lock, make's targets, setup's messages, and who may import whom."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import otkd

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the make and pytest that may be running this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env={**clean, **env}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


# --- the lock


def pins() -> dict[str, list[Version]]:
    """Package → its pinned versions (one for each marker)."""
    found: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


def declared(*extras: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def test_lock_pins_every_package_with_hashes() -> None:
    blocks = re.split(r"^(?=[^\s#])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) > 50
    for block in blocks:
        assert re.match(r"[\w.-]+==\S+ ", block), block.splitlines()[0]
        assert "--hash=sha256:" in block, block.splitlines()[0]


def test_lock_names_no_host() -> None:
    assert "://" not in LOCK
    assert not re.search(r"index-url|find-links", LOCK)


@pytest.mark.parametrize(
    "requirement", [*declared("dev"), *map(Requirement, PYPROJECT["build-system"]["requires"])], ids=str
)
def test_lock_has_every_dependency(requirement: Requirement) -> None:
    versions = pins().get(canonicalize_name(requirement.name), [])
    assert versions, "run make lock"
    assert all(version in requirement.specifier for version in versions), "run make lock"


def test_everything_imported_is_declared() -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared("dashboard", "timm")}
    names.add("pydantic-core")  # pydantic pins it and shows its types
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for package in ("otkd", "dashboards")
        for path in (ROOT / package).rglob("*.py")
        for module in imported(path)
        if module not in sys.stdlib_module_names and module not in ("otkd", "dashboards")
        if names.isdisjoint(map(canonicalize_name, distributions.get(module, [])))
    }
    assert not undeclared


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_version_is_the_same_everywhere() -> None:
    assert PYPROJECT["project"]["version"] == otkd.__version__
    assert f"## [{otkd.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- make


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make reads, in a folder of its own."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (help .*)$", makefile, re.MULTILINE)[0].split())
    listed = set(re.findall(r"^  make (\S+) +\S", run("make", "help").stdout, re.MULTILINE))
    assert listed == phony == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("how", ["named", "found"])
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 3.9.2", ["3.9.2", "3.11", "PYTHON="]),
        ("echo 2.7.18", ["2.7.18", "3.11", "PYTHON="]),
        ("exit 127", ["does not run", "3.11", "PYTHON="]),
        ('case "$2" in *ensurepip*) exit 1;; *) echo 3.12.1;; esac', ["venv", "python3-venv", "PYTHON="]),
    ],
    ids=["3.9", "2.7", "broken", "no venv module"],
)
def test_setup_says_in_one_line_what_python_it_needs(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, how: str, script: str, expected: list[str]
) -> None:
    fake = tmp_path_factory.mktemp("bin") / "python3"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    named = [f"PYTHON={fake}"] if how == "named" else []
    result = run("make", "setup", *named, cwd=checkout, PATH=f"{fake.parent}:{os.environ['PATH']}")
    said = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("make: ***")]
    assert result.returncode != 0
    assert len(said) == 1
    assert all(word in said[0] for word in expected)
    assert not (checkout / ".venv").exists()


def test_setup_runs_when_there_is_cause_and_is_silent_otherwise(checkout: Path) -> None:
    stamp = checkout / ".venv" / ".otkd-setup"
    (checkout / "scripts" / "setup").write_text(f"mkdir -p .venv; pwd -P > {stamp.relative_to(checkout)}; echo ran $1")

    def said(*arguments: str, cwd: Path = checkout) -> str:
        result = run("make", "setup", *arguments, cwd=cwd)
        assert result.returncode == 0
        assert not result.stderr
        return result.stdout

    assert said() == "ran\n"
    assert said() == ""
    future = time.time() + 60
    os.utime(checkout / "requirements.lock", (future, future))
    assert "ran" in run("make", "setup", cwd=checkout).stdout
    os.utime(checkout / "requirements.lock", (0, 0))
    assert said() == ""
    assert said("PYTHON=python3") == "ran python3\n"
    copied = shutil.copytree(checkout, checkout / "copied")
    assert said(cwd=copied) == "ran\n"
    assert said(cwd=copied) == ""


def test_clean_keeps_what_was_trained(checkout: Path) -> None:
    kept = [
        checkout / "runs" / "mlflow.db",
        checkout / "runs" / "trials" / "0" / "result.json",
        checkout / ".venv" / "x",
    ]
    gone = [checkout / ".ruff_cache" / "x", checkout / "otkd" / "ot" / "__pycache__" / "x.pyc"]
    for path in kept + gone:
        path.parent.mkdir(parents=True)
        path.touch()
    assert run("make", "clean", cwd=checkout).returncode == 0
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)


# --- who imports whom


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with its contracts."""
    root = tmp_path_factory.mktemp("contracts")
    for name in ("otkd", "dashboards"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def broken(root: Path) -> set[str]:
    """Names of the contracts that lint-imports finds broken."""
    result = run(BIN / "lint-imports", "--no-cache", cwd=root)
    names = set(re.findall(r"^(.+) BROKEN\b", result.stdout, re.MULTILINE))
    assert (result.returncode != 0) == bool(names), result.stdout + result.stderr
    return names


def test_import_contracts_hold(copy: Path) -> None:
    assert broken(copy) == set()


VIOLATIONS = {
    "core": ("otkd/core/names.py", "import torch"),
    "ot": ("otkd/ot/cost.py", "import otkd.losses"),
    "models": ("otkd/models/resnet.py", "import otkd.ot.cost"),
    "data": ("otkd/data/digits.py", "import pandas"),
    "losses": ("otkd/losses/kd.py", "import otkd.data.pipeline"),
    "train": ("otkd/data/pipeline.py", "import yaml"),
    "train-ot": ("otkd/train/engine.py", "import otkd.ot.sinkhorn"),
    "track": ("otkd/track/reader.py", "import otkd.train"),
    "sweep": ("otkd/sweep/local.py", "import otkd.losses.objective"),
    "plan": ("otkd/core/trial.py", "def later():\n    import ray"),
    "report": ("otkd/report/frame.py", "import torch"),
    "report-track": ("otkd/report/frame.py", "import otkd.track.store"),
    "dashboards": ("dashboards/views/cost.py", "import otkd.sweep.plan"),
    "dashboards-track": ("dashboards/source.py", "def later():\n    import otkd.track.reader"),
}


def test_every_import_contract_is_tried() -> None:
    assert set(VIOLATIONS) == {contract["id"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}


@pytest.mark.parametrize("contract", VIOLATIONS)
def test_import_contracts_catch_a_violation(copy: Path, contract: str) -> None:
    name = next(c["name"] for c in PYPROJECT["tool"]["importlinter"]["contracts"] if c["id"] == contract)
    path, line = copy / VIOLATIONS[contract][0], VIOLATIONS[contract][1]
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(f"{before}\n{line}\n", encoding="utf-8")
        assert name in broken(copy)
    finally:
        path.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "otkd.core.plugins, otkd.core.trial, otkd.core.records",
            {"torch", "numpy", "ray", "mlflow", "pandas", "yaml"},
        ),
        ("otkd.train", {"ray", "mlflow", "pandas", "otkd.track", "otkd.sweep", "otkd.report"}),
        ("otkd.sweep.spec, otkd.sweep.plan", {"torch", "ray", "mlflow", "pandas", "otkd.train"}),
        ("otkd.report, otkd.report.frame", {"torch", "ray", "otkd.train", "otkd.sweep"}),
    ],
    ids=["core", "train", "plan", "report"],
)
def test_an_import_brings_nothing_heavier(modules: str, absent: set[str]) -> None:
    code = f"import {modules}, sys; print(*sorted({absent!r} & set(sys.modules)))"
    result = run(sys.executable, "-c", code)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_help_answers_at_once() -> None:
    """In processor time, which other work on the machine leaves alone."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(BIN / "otkd", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


# --- CONTRIBUTING.md


def examples() -> dict[str, str]:
    """Path → content of every example that names its file in the first line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_contributing_examples_work(tmp_path: Path) -> None:
    """Every example, written where it says, passes its test, is found by name, and can be planned."""
    for name in ("otkd", "dashboards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, content in examples().items():
        assert not (ROOT / path).exists()
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content, encoding="utf-8")
    tested = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    code = "import sys; from otkd.cli import main; sys.argv = ['otkd', 'plan', 'sweeps/logits.yaml']; main()"
    planned = run(sys.executable, "-c", code, cwd=tmp_path)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert broken(tmp_path) == set()
    linted = run(
        BIN / "ruff", "check", "--no-cache", *(path for path in examples() if path.endswith(".py")), cwd=tmp_path
    )
    assert linted.returncode == 0, linted.stdout
