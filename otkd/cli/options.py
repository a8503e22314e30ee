"""What the commands share: options of the same name and meaning, and where they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Runs = Annotated[Path, typer.Option(help="Where state, records and reports lie.", envvar="OTKD_RUNS")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="A folder with local copies of data sets.", envvar="OTKD_DATA_DIR", exists=True, file_okay=False),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def console_for(stream: IO[str] | None = None) -> Console:
    """Where a command prints for a person: as wide as the terminal, wide enough for tables where there is none.

    Args:
        stream: by default stdout.
    """
    from rich.console import Console

    return Console(width=None if (stream or sys.stdout).isatty() else 200, file=stream)
