"""The undisturbed run that all others are held against, and sweeps that are ended with their test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parent))  # import-mode=importlib leaves a folder's helpers out of the path

from harness import HERE, Reference, Sweep, reference

Begin = Callable[..., Sweep]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them, to be copied: making one takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Reference:
    """What the sweep leaves when nothing happens to it."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"))
    sweep.provide(database)
    try:
        sweep.finish(HERE)
        return reference(sweep)
    finally:
        sweep.close()


@pytest.fixture
def begin(tmp_path: Path, database: Path) -> Iterator[Begin]:
    """Make sweeps like `Sweep(folder, …)`, not yet started, in a folder of the test's own."""
    made: list[Sweep] = []

    def make(*words: str, **changes: object) -> Sweep:
        made.append(Sweep(tmp_path, *words, **changes))  # type: ignore[arg-type]
        made[-1].provide(database)
        return made[-1]

    yield make
    for sweep in made:
        sweep.close()
