"""The report of an invented sweep as text, and the files that it is held against: `make golden` writes them anew."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from report_sweeps import full_sweep, histories

from otkd.report import frame, render

FOLDER = Path(__file__).with_name("golden")
NOW = re.compile(r"(?<=report written: ).*")


def made(folder: Path) -> dict[str, str]:
    """Path → text of report.md (without the time of writing) and of every table for LaTeX."""
    record = full_sweep().record()
    render.build(record, frame.epochs(record, histories(record)), folder)
    return texts(folder)


def texts(folder: Path) -> dict[str, str]:
    """Path → text of the files of a folder that are compared."""
    paths = [folder / "report.md", *sorted(folder.glob("tables/*.tex"))]
    found = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.exists()}
    return {path: NOW.sub("now", text) for path, text in found.items()}


def renew() -> None:
    """Write what the report is now; files of tables that are no more go."""
    with tempfile.TemporaryDirectory() as folder:
        new = made(Path(folder))
    for path in texts(FOLDER).keys() - new.keys():
        (FOLDER / path).unlink()
    for path, text in new.items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    renew()
