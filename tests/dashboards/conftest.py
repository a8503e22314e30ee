"""Fixtures of the page's tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # import-mode=importlib leaves both out of the path
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

from report_sweeps import histories
from streamlit.testing.v1 import AppTest

from otkd.report import frame, live, render

APP = Path(__file__).parents[2] / "dashboards" / "app.py"


class Page:
    """The page over a record made by hand, and how often that was read."""

    def __init__(self, record: Any, epochs: Any, files: dict[tuple[str, str], str]) -> None:
        self.record, self.epochs, self.files = record, epochs, files
        self.stamp, self.reads = "1", 0
        self.names, self.seconds = [record.info.name, "other"], 0.0
        self.error: Exception | None = None
        self.file_error: Exception | None = None
        self.app = AppTest.from_file(str(APP), default_timeout=300)

    def read(self, layout: Any, name: str) -> tuple[Any, Any]:
        self.reads += 1
        time.sleep(self.seconds)
        return self.record, self.epochs

    def sweeps(self, layout: Any) -> list[str]:
        if self.error:
            raise self.error
        return self.names

    def text(self, layout: Any, run_id: str, path: str) -> str | None:
        if self.file_error:
            raise self.file_error
        return self.files.get((run_id, path))

    def open(self, view: str = "Overview") -> AppTest:
        if view != "Overview":
            self.app.query_params["view"] = view
        return self.run()

    def run(self) -> AppTest:
        self.app.run()
        assert not self.app.exception, [(error.value, error.stack_trace) for error in self.app.exception]
        return self.app

    @property
    def html(self) -> list[str]:
        """All that is shown as escaped HTML, without the style."""
        return [one.proto.body for one in self.app.get("html") if "<style>" not in one.proto.body]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Page]:
    """Makes the page of a record; files: (run id, path) → text."""

    def make(record: Any, files: dict[tuple[str, str], str] | None = None, epochs: Any = None) -> Page:
        epochs = frame.epochs(record, histories(record)) if epochs is None else epochs
        made = Page(record._replace(experiment="1", ui="http://127.0.0.1:5000"), epochs, files or {})
        monkeypatch.setenv("OTKD_RUNS", str(tmp_path))
        monkeypatch.setattr(live, "stamp", lambda layout: made.stamp)
        monkeypatch.setattr(live, "sweeps", made.sweeps)
        monkeypatch.setattr(live, "text", made.text)
        monkeypatch.setattr(render, "read", made.read)
        return made

    return make
