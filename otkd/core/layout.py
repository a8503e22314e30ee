"""Where everything lies under `runs/`, and how a file gets there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from otkd.core.errors import StorageError


class TrialDir:
    """The folder of one trial, `runs/trials/<key>/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trial = path / "trial.json"
        self.checkpoint = path / "checkpoint.pt"
        self.previous = path / "checkpoint.previous.pt"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.result = path / "result.json"
        self.set_aside = path / "result.diverged.json"
        """The result of a trial that diverged and is to be trained again, or has been."""
        self.snapshots = path / "snapshots.json"
        self.confusion = path / "confusion.json"
        self.error = path / "error.txt"
        self.failed = path / "failed.json"
        """The result of a trial that has failed; gone when it begins again."""
        self.pulse = path / "pulse"
        """Changes while the trial makes progress."""

    @property
    def done(self) -> bool:
        """The trial has ended (finished or diverged): it is not run again."""
        return self.result.exists()


class Layout:
    """The folders of one `runs/` directory."""

    def __init__(self, root: Path | str = "runs") -> None:
        self.root = Path(root)
        self.trials = self.root / "trials"
        self.artifacts = self.root / "artifacts"
        self.ray = self.root / "ray"
        self.reports = self.root / "reports"
        self.report_cache = self.reports / ".cache"
        """Learning curves between two reports (`otkd.report.cache`); may be removed at any time."""
        self.records = self.root / "records"
        self.cache = self.root / "cache"
        self.weights = self.root / "weights"
        self.database = self.root / "mlflow.db"
        self.stop = self.root / ".stop"
        """A file that asks all who train here to save and stop."""
        self.lock = self.root / ".lock"
        """Who runs a sweep here, as JSON (`otkd.sweep.lock`)."""

    def trial(self, key: str) -> TrialDir:
        """The folder of a trial."""
        return TrialDir(self.trials / key)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` at once, or not at all.

    Raises:
        StorageError: the disk refuses (full, read-only, no permission); what stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free some space or name another --runs."
        ) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
