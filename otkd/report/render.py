"""The report of a sweep: one self-contained page, Markdown, and its tables and figures as files for other programs."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context

from otkd.core import names, plugins
from otkd.core.errors import OtkdError, TrackingError
from otkd.core.layout import Layout, atomic, write_text
from otkd.core.records import SweepInfo
from otkd.core.trial import digest
from otkd.report import formats, frame, stats, summary
from otkd.report.references import load as load_references
from otkd.report.table import Table

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord


TEMPLATES = Path(__file__).with_name("templates")


class Report(NamedTuple):
    """What was written."""

    folder: Path
    html: Path
    """The page; it needs no other file."""
    paths: tuple[Path, ...]
    """Every file, the page included."""
    markdown: str
    """The main table with its progress line, as for the parent run's note."""
    problems: tuple[str, ...]
    """Tables and figures that could not be made, and why; the page says so too."""


class Picture(NamedTuple):
    """One figure, for the page and for print."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes

    @property
    def data(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Section:
    """The tables and figures that share a plug-in name."""

    name: str
    title: str
    tables: list[Table]
    pictures: list[Picture]


class Contents(NamedTuple):
    """Everything a report says, before it is written."""

    info: SweepInfo
    frame: pd.DataFrame
    sentences: list[str]
    sections: list[Section]
    problems: list[str]


def write_report(layout: Layout, name: str | None = None, references: Path | None = None) -> Report:
    """Read a sweep (the last one without `name`) and write its report to `runs/reports/<sweep>/`.

    Args:
        layout: the `runs/` folder.
        name: the sweep's name.
        references: a CSV with further published rows.

    Raises:
        OtkdError: there is no such sweep, or `references` cannot be read.
        StorageError: the disk refuses.
    """
    load_references(references)  # what is wrong with it is said before the sweep is read
    record, epochs = read(layout, name)
    return build(record, epochs, layout.reports / record.info.name, references)


def read(layout: Layout, name: str | None = None) -> tuple[SweepRecord, pd.DataFrame]:
    """A sweep (the last one without `name`), and its learning curves as `frame.epochs` gives them.

    Raises:
        OtkdError: there is no such sweep, or the store does not answer.
    """
    from otkd.track import reader  # brings mlflow, which nothing else here needs

    record = _record(layout, name)
    return record, frame.epochs(record, lambda metric: reader.histories(layout, record, metric))


def _record(layout: Layout, name: str | None) -> SweepRecord:
    from otkd.track import reader

    try:
        return reader.read_sweep(layout, name)
    except TrackingError as error:  # names the store
        raise OtkdError(f"{error}{_was_here(layout, name)}") from error
    except OtkdError as error:
        store = "the store of MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else layout.database
        raise OtkdError(f"{store}: {error}{_was_here(layout, name)}") from error


def _was_here(layout: Layout, name: str | None) -> str:
    """What to do about a sweep of this folder that the store does not have; empty where there was none."""
    plans = sorted(layout.records.glob("*.plan.json"))
    found = [plan for plan in plans if name in (None, plan.name.removesuffix(".plan.json"))]
    if not found:
        return ""
    return (
        f" {found[0]} says that it was run here: if it was recorded elsewhere, set MLFLOW_TRACKING_URI as it was then."
    )


def build(record: SweepRecord, epochs: pd.DataFrame | None, folder: Path, references: Path | None = None) -> Report:
    """Write the report of `record` into `folder`; tables and figures of an earlier report there are replaced.

    Args:
        record: the sweep as the reader gives it.
        epochs: what `frame.epochs` gives; None for no learning curves.
        folder: made if it does not exist.
        references: a CSV with further published rows.

    Raises:
        OtkdError: `references` cannot be read.
        StorageError: the disk refuses.
    """
    contents = compose(record, epochs, references)
    files = _files(contents, record)
    _clear(folder, files)
    for path, content in files.items():
        _write(folder / path, content)
    paths = tuple(folder / path for path in files)
    return Report(folder, folder / "report.html", paths, headline(record, epochs), tuple(contents.problems))


def is_current(folder: Path, record: SweepRecord) -> bool:
    """Whether the report in `folder` was made from this sweep, with every trial in the state that `record` says."""
    try:
        page = (folder / "report.html").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return _meta(page, "otkd-run") == record.run_id and _meta(page, "otkd-trials") == states(record)


def states(record: SweepRecord) -> str:
    """What identifies the trials of a sweep together with their states."""
    return digest(sorted((row.label.key, row.status) for row in record.trials))


def _meta(page: str, name: str) -> str | None:
    found = re.search(rf'<meta name="{name}" content="([^"]*)">', page)
    return html.unescape(found[1]) if found else None


def compose(record: SweepRecord, epochs: pd.DataFrame | None, references: Path | None = None) -> Contents:
    """Every table and figure of every plug-in. One that fails is named in `problems` and the others go on.

    Raises:
        OtkdError: `references` cannot be read.
    """
    load_references(references)
    if epochs is None:
        epochs = frame.epochs(record, lambda metric: {})
    trials = frame.trials(record, epochs)
    trials.attrs["references"] = None if references is None else str(references)
    problems: list[str] = []
    sections: dict[str, Section] = {}
    for group in ("tables", "plots"):
        for name in plugins.names(group):
            _add(sections, problems, group, name, (trials, epochs, record.info))
    ordered = sorted(sections.values(), key=lambda section: (_order(section.name), section.name))
    return Contents(record.info, trials, summary.sentences(trials), ordered, problems)


def console(record: SweepRecord, epochs: pd.DataFrame | None = None) -> dict[str, pd.DataFrame]:
    """The accuracy table as text for the terminal: pair → a row per method; empty where there is no student."""
    found = _accuracy(frame.trials(record, epochs), record.info)
    return {pair: found[0].frame[pair] for pair in found[0].frame.columns.unique(0)} if found else {}


def headline(record: SweepRecord, epochs: pd.DataFrame | None = None) -> str:
    """Progress and the accuracy table as Markdown, for the parent run's note."""
    trials = frame.trials(record, epochs)
    parts = [formats.md(line) for line in summary.sentences(trials)]
    parts += [
        part
        for table in _accuracy(trials, record.info)[:1]
        for part in (formats.markdown(table), formats.md(table.caption))
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(trials: pd.DataFrame, info: SweepInfo) -> list[Table]:
    found: list[Table] = plugins.load("tables", "accuracy").table(trials, info)
    return found


def _order(name: str) -> int:
    """A plug-in's `ORDER` in the report; those that name none come last."""
    orders = [
        getattr(plugins.load(group, name), "ORDER", 1000)
        for group in ("tables", "plots")
        if name in plugins.names(group)
    ]
    return min(orders)


def _add(sections: dict[str, Section], problems: list[str], group: str, name: str, source: tuple[Any, ...]) -> None:
    trials, epochs, info = source
    try:
        module = plugins.load(group, name)
        tables = list(module.table(trials, info)) if group == "tables" else []
        picture = _picture(module, name, trials, epochs, info) if group == "plots" else None
    except Exception as error:  # a plug-in of the user's must not cost the report of a long sweep
        problems.append(f"{plugins.GROUPS[group].noun} {name}: {type(error).__name__}: {error}")
        return
    if tables or picture:
        section = sections.setdefault(name, Section(name, module.TITLE, [], []))
        section.tables += tables
        section.pictures += [picture] if picture else []


def _picture(module: Any, name: str, trials: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Picture | None:
    drawing = module.figure(trials, epochs, info)
    if drawing is None:
        return None
    caption = module.caption(trials, info) if hasattr(module, "caption") else ""
    return Picture(name, module.TITLE, caption, _saved(drawing, "png", "Software"), _saved(drawing, "pdf", "Creator"))


def _saved(drawing: Any, form: str, maker: str) -> bytes:
    """The figure as a file of a form, the same bytes for the same figure."""
    buffer = io.BytesIO()
    undated = {"CreationDate": None} if form == "pdf" else {}
    with rc_context({"pdf.fonttype": 42}):  # TrueType, which publishers ask for
        drawing.savefig(buffer, format=form, facecolor="white", metadata={maker: "otkd", **undated})
    return buffer.getvalue()


def _files(contents: Contents, record: SweepRecord) -> dict[str, str | bytes]:
    """Path within the folder → content; the page comes last, as it says that the report is whole."""
    context = _context(contents, record)
    files: dict[str, str | bytes] = {
        "report.md": _template("report.md.j2", False, context),
        "trials.csv": formats.csv(contents.frame),
    }
    for section in contents.sections:
        for table in section.tables:
            files[f"tables/{table.name}.csv"] = formats.csv(table.data)
            files[f"tables/{table.name}.tex"] = formats.latex(table)
            files[f"tables/{table.name}.parquet"] = formats.parquet(table.data)
        files |= {f"figures/{picture.name}.png": picture.png for picture in section.pictures}
        files |= {f"figures/{picture.name}.pdf": picture.pdf for picture in section.pictures}
    return files | {"report.html": _template("report.html.j2", True, context)}


def _context(contents: Contents, record: SweepRecord) -> dict[str, Any]:
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return {
        **contents._asdict(),
        "trials": _trials(contents.frame),
        "provenance": _provenance(contents.frame),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.started)),
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "run_id": record.run_id,
        "states": states(record),
        "script": script,
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _template(name: str, escape: bool, context: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": formats.md, "markdown": formats.markdown}
    environment.filters |= {"numeric": formats.numeric_columns, "spans": formats.spans, "glue": _glue}
    return environment.get_template(name).render(context)


def _glue(text: str) -> str:
    """No line break within `n = 3` or `71.20 ± 0.30`."""
    return text.replace("n = ", "n\u00a0=\u00a0").replace(" ± ", "\u00a0±\u00a0")


def _trials(trials: pd.DataFrame) -> Table:
    """Every trial with its own figure, so that no mean hides one."""
    top1 = names.test("last", names.TEST_TOP1)
    texts: dict[str, Callable[[Any], str]] = {
        "pair": str,
        "seed": str,
        "status": str,
        top1: stats.number,
        "reason": str,
        "run_id": str,
    }
    if trials["stage"].any():
        texts = {"pair": str, "stage": str} | texts
    words = {top1: "test top-1 %, last epoch", "run_id": "run"}
    shown = pd.DataFrame({words.get(name, name): trials[name].map(text) for name, text in texts.items()}, dtype=object)
    shown.index = pd.Index(trials["variant"], name="method", dtype=object)
    return Table("trials", "Every trial", "", shown, trials)


def _provenance(trials: pd.DataFrame) -> dict[str, str]:
    """Field → its value, or its values with the number of trials that have them."""
    columns = [name for name in trials if name.startswith(frame.PROVENANCE)]
    return {name.removeprefix(frame.PROVENANCE): _values(trials[name].dropna()) for name in columns}


def _values(column: pd.Series) -> str:
    counts = column.value_counts(sort=False)
    return (
        str(counts.index[0])
        if len(counts) == 1
        else ", ".join(f"{value} ({count} trials)" for value, count in counts.items())
    )


def _clear(folder: Path, files: dict[str, str | bytes]) -> None:
    """An old table beside new figures would be false: what an earlier report left and this one does not write goes."""
    for pattern in ("tables/*.csv", "tables/*.tex", "tables/*.parquet", "figures/*.png", "figures/*.pdf"):
        for path in folder.glob(pattern):
            if path.relative_to(folder).as_posix() not in files:
                path.unlink()


def _write(path: Path, content: str | bytes) -> None:
    if isinstance(content, str):
        write_text(path, content)
        return
    with atomic(path) as temporary:
        temporary.write_bytes(content)
