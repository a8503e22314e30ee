"""Every word of an invented sweep's report is as it was; a change that is meant is written by `make golden`."""

from __future__ import annotations

from pathlib import Path

import golden_report


def test_the_report_is_as_it_was(tmp_path: Path) -> None:
    made, golden = golden_report.made(tmp_path), golden_report.texts(golden_report.FOLDER)
    assert sorted(made) == sorted(golden)
    for path, text in made.items():
        assert text == golden[path], f"{path} is another; if that is meant: make golden"
