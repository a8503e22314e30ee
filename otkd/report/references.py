"""Published results that stand beside ours: the figures shipped with otkd, and rows of the user's own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from otkd.core.errors import OtkdError

SHIPPED = Path(__file__).with_name("published_results.csv")
COLUMNS = ("dataset", "teacher", "student", "method", "top1", "selection", "source")


WANTED = f"Reference rows are a CSV with the columns {', '.join(COLUMNS)}"


def load(extra: Path | str | None = None) -> pd.DataFrame:
    """The shipped rows, and behind them those of a CSV of the same columns.

    Raises:
        OtkdError: the CSV cannot be read, lacks a column or has a top-1 that is no number; names the columns wanted.
    """
    shipped = pd.read_csv(SHIPPED, keep_default_na=False, dtype={"top1": float})
    return shipped if extra is None else pd.concat([shipped, _read(Path(extra))], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (OSError, ValueError) as error:
        raise OtkdError(f"{path}: cannot read the reference rows: {error}. {WANTED}.") from error
    lacking = [name for name in COLUMNS if name not in rows]
    if lacking:
        raise OtkdError(f"{path}: no column {', '.join(lacking)}. {WANTED}.")
    try:
        return rows[list(COLUMNS)].astype({"top1": float})
    except ValueError as error:
        raise OtkdError(f"{path}: {error}. {WANTED}; top1 is a percentage such as 74.92.") from error
