"""What a report is to hold, and in which forms it is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from otkd.core import plugins
from otkd.core.errors import OtkdError, did_you_mean
from otkd.report import choice

FORMATS = {
    "html": "the page",
    "md": "the page as Markdown, with the figures that it shows",
    "pdf": "the page, printed by Chromium, and every figure",
    "csv": "every trial, and the numbers of every table",
    "tex": "every table for LaTeX",
    "parquet": "the numbers of every table, with their types",
    "json": "the numbers of every table, as MLflow's table view reads them",
    "png": "every figure",
}
"""Form → what is written in it."""
DRAWN = frozenset({"html", "md", "pdf", "png"})
"""Forms that show figures."""
GROUPS = ("tables", "plots")


class Options(NamedTuple):
    """What a reader asked for; the whole report by default, without the PDF of the page, which takes a browser."""

    formats: frozenset[str] = frozenset(FORMATS)
    only: tuple[str, ...] = ()
    """Names of tables and figures (their plug-ins); all where empty."""
    metric: str = choice.DEFAULT.column
    """Column of the figure that tables compare."""
    baseline: str | None = None
    """Method that others are held against; None for the student alone and KD."""
    browser: Path | None = None
    """Chromium or Chrome, to print the page with."""
    warning: str = ""
    """What every caption has to begin with."""

    def wanted(self, group: str) -> list[str]:
        """The plug-ins of a group that are to be made."""
        needed = self.formats & DRAWN if group == "plots" else self.formats - {"png"}
        return [name for name in plugins.names(group) if needed and (not self.only or name in self.only)]

    def writes(self, path: str) -> bool:
        """Whether a file of the report, by its path in the report's folder, is to be written."""
        if self.formats == frozenset(FORMATS):
            return True
        form = PurePosixPath(path).suffix[1:]
        return form in self.formats or (form == "png" and "md" in self.formats)

    def applied(self, trials: pd.DataFrame) -> pd.DataFrame:
        """The frame with the figure and the baseline that are chosen.

        Raises:
            OtkdError: it has them not.
        """
        return choice.choose(trials, self.metric, self.baseline)

    @property
    def beside(self) -> str:
        """For the foot of the page: what lies beside it."""
        if self.formats == frozenset(FORMATS):
            return "The same tables lie beside this page as CSV, Parquet, JSON and LaTeX, the figures as PNG and PDF."
        others = [form for form in FORMATS if form in self.formats - {"html"}]
        return f"Beside this page lies what was asked for: {', '.join(others)}." if others else ""


WHOLE = Options()


def checked(
    formats: Iterable[str] = (), only: Iterable[str] = (), metric: str | None = None, baseline: str | None = None
) -> Options:
    """Options as a person writes them; empty ones are the defaults.

    Raises:
        OtkdError: a form, table, figure or metric is unknown; says what there is.
    """
    chosen = frozenset(_known("format", form, list(FORMATS)) for form in formats) or frozenset(FORMATS)
    made = sorted({name for group in GROUPS for name in plugins.names(group)})
    names = tuple(dict.fromkeys(_known("table or figure", name, made) for name in only))
    column = choice.DEFAULT.column if metric is None else choice.named(metric).column
    return Options(chosen, names, column, baseline)


def _known(noun: str, name: str, allowed: list[str]) -> str:
    if name not in allowed:
        raise OtkdError(f"there is no {noun} {name!r}; there is {', '.join(allowed)}.{did_you_mean(name, allowed)}")
    return name
