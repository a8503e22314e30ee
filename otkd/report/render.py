"""The report of a sweep: one self-contained page, Markdown, and its tables and figures as files for other programs."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context

from otkd import __version__
from otkd.core import names, plugins
from otkd.core.errors import OtkdError, StorageError, TrackingError
from otkd.core.layout import Layout, atomic, write_text
from otkd.core.records import SweepInfo
from otkd.core.trial import digest
from otkd.report import cache, formats, frame, pdf, side_by_side, stats, style, summary
from otkd.report.files import NONE, Files, call
from otkd.report.options import WHOLE, Options
from otkd.report.references import load as load_references
from otkd.report.table import Table, distinct

if TYPE_CHECKING:
    from otkd.track.reader import SweepRecord


TEMPLATES = Path(__file__).with_name("templates")
PDF = "report.pdf"
OURS = (
    *("tables/*.csv", "tables/*.tex", "tables/*.parquet", "tables/*.json", "figures/*.png", "figures/*.pdf"),
    *("report.html", "report.md", PDF, "trials.csv"),
)
"""What reports write: of these files, those of an earlier report go."""

PAGE, SUMMARY = "report.html", "summary.json"
"""The page; and what a report says of itself, and its main table, for programs."""
MAIN = "accuracy"
"""Plug-in of the main table."""
LAST = 1000
"""Place in the report of a plug-in that names no `ORDER`."""
SOURCES = (".py", ".csv", ".j2", ".css", ".js")
"""Kinds of otkd's files that make a report what it is."""


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
    shown: dict[str, pd.DataFrame]
    """The main table for a terminal: pair → a row per method."""
    progress: str
    """How many students have finished, in a sentence."""
    new: bool = True
    """Whether it was made now; else it was there, and says what is on record."""


class Picture(NamedTuple):
    """One figure, for the page and for print."""

    name: str
    title: str
    caption: str
    png: bytes
    pdf: bytes
    spots: tuple[style.Spot, ...] = ()
    """Its named points."""

    @property
    def data(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass
class Section:
    """The tables and figures that share a plug-in name."""

    name: str
    title: str
    order: float
    """Its place in the report: the least `ORDER` of the two."""
    tables: list[Table]
    pictures: list[Picture]


class Contents(NamedTuple):
    """Everything a report says, before it is written."""

    info: SweepInfo
    frame: pd.DataFrame
    sentences: list[str]
    sections: list[Section]
    problems: list[str]


def write_report(
    layout: Layout,
    name: str | Sequence[str] | None = None,
    references: Path | None = None,
    options: Options = WHOLE,
    *,
    mixed: bool = False,
    to: Path | None = None,
) -> Report:
    """Read a sweep (the last one without `name`) or several, and write their report to `runs/reports/<sweep>/`.

    The report of one sweep is not made again where it is there and would be the same.

    Args:
        layout: the `runs/` folder.
        name: the sweep's name; of several, all names: they stand side by side, in the folder `<a>+<b>`.
        references: a CSV with further published rows.
        options: what the report holds, and in which forms it is written.
        mixed: let sweeps with different budgets stand in one table, which then says so.
        to: where the report's folder is made; by default `runs/reports/`.

    Raises:
        OtkdError: there is no such sweep, several cannot stand in one table, or `references` cannot be read.
        StorageError: the disk refuses.
    """
    load_references(references)  # what is wrong with it is said before the sweep is read
    asked = [name] if isinstance(name, str) or name is None else name
    return report_of(layout, recorded(layout, asked), references, options, mixed=mixed, to=to)


def recorded(layout: Layout, asked: Sequence[str | None]) -> list[SweepRecord]:
    """Sweeps by their names (None: the last one), each once.

    Raises:
        OtkdError: there is no such sweep, or the store does not answer.
    """
    return list({record.run_id: record for record in (_record(layout, one) for one in dict.fromkeys(asked))}.values())


def report_of(
    layout: Layout,
    records: Sequence[SweepRecord],
    references: Path | None = None,
    options: Options = WHOLE,
    *,
    mixed: bool = False,
    to: Path | None = None,
) -> Report:
    """What `write_report` does, of sweeps that have been read.

    Raises:
        OtkdError: several cannot stand in one table, `references` cannot be read, or the store does not answer.
        StorageError: the disk refuses.
    """
    record, folders = records[0], to or layout.reports
    if len(records) == 1 and (found := there(folders / record.info.name, record, references, options)) is not None:
        return found
    sweeps = [(record, cache.epochs(layout, record)) for record in records]
    epochs = sweeps[0][1]
    if len(sweeps) > 1:
        record, epochs, warning = side_by_side.join(sweeps, mixed)
        options = options._replace(warning=warning)
    kept = cache.CachedFiles(layout, record)
    made = build(record, epochs, folders / record.info.name, references, options, kept)
    kept.keep()
    return made


def read(layout: Layout, name: str | None = None) -> tuple[SweepRecord, pd.DataFrame]:
    """A sweep (the last one without `name`), and its learning curves as `frame.epochs` gives them.

    Raises:
        OtkdError: there is no such sweep, or the store does not answer.
    """
    record = _record(layout, name)
    return record, cache.epochs(layout, record)


def _record(layout: Layout, name: str | None) -> SweepRecord:
    from otkd.track import reader  # brings mlflow, which nothing else here needs

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


def build(
    record: SweepRecord,
    epochs: pd.DataFrame | None,
    folder: Path,
    references: Path | None = None,
    options: Options = WHOLE,
    kept: Files | None = None,
) -> Report:
    """Write the report of `record` into `folder`; an earlier report there is replaced as a whole.

    Args:
        record: the sweep as the reader gives it.
        epochs: what `frame.epochs` gives; None for no learning curves.
        folder: made if it does not exist.
        references: a CSV with further published rows.
        options: what the report holds, and in which forms it is written.
        kept: files of the trials, as MLflow keeps them; None for none.

    Raises:
        OtkdError: `references` cannot be read, or the sweep has not what `options` name.
        StorageError: the disk refuses.
    """
    contents = compose(record, epochs, references, options, kept)
    files = _files(contents, record, options)
    told = _told(contents, files, options, made_with(references, options))
    files = {SUMMARY: json.dumps(told, ensure_ascii=False, indent=1), **files}
    try:
        _clear(folder, files)
        (folder / PAGE).unlink(missing_ok=True)  # with it the report is whole, so the old one shall not vouch for this
        for path, content in files.items():
            _write(folder / path, content)
    except (OSError, StorageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or cause or error
        raise StorageError(
            f"cannot write the report to {folder}: {reason}. Free some space, make the folder writable, or write "
            "elsewhere: `otkd report --to FOLDER`."
        ) from error
    return _report(folder, told, contents.problems)


def is_current(folder: Path, record: SweepRecord) -> bool:
    """Whether the report in `folder` was made from this sweep, with every trial as `record` has it."""
    try:
        page = (folder / PAGE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return _meta(page, "otkd-run") == record.run_id and _meta(page, "otkd-trials") == states(record)


def there(folder: Path, record: SweepRecord, references: Path | None = None, options: Options = WHOLE) -> Report | None:
    """The report in `folder`, if it is whole and would be the same again."""
    if not is_current(folder, record):
        return None
    try:
        told = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        whole = all((folder / path).is_file() for path in told["files"])
        same = told["made_with"] == made_with(references, options) and (options.browser is None or PDF in told["files"])
        return _report(folder, told, [])._replace(new=False) if whole and same and not told["problems"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _report(folder: Path, told: Mapping[str, Any], problems: Sequence[str]) -> Report:
    """A report in `folder`, by what it says of itself."""
    paths = tuple(folder / path for path in told["files"])
    shown = _frames(told["accuracy"])
    return Report(folder, folder / PAGE, paths, told["headline"], tuple(problems), shown, told["progress"])


def made_with(references: Path | None = None, options: Options = WHOLE) -> str:
    """What a report depends on besides the record: otkd, its tables and figures, the user's own rows, and options."""
    own = [path for path in Path(__file__).parent.rglob("*") if path.suffix in SOURCES]
    code = {*own, *(path for group in ("tables", "plots") for path in plugins.sources(group).values())}
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(code)]
    rows = "" if references is None else hashlib.sha256(Path(references).read_bytes()).hexdigest()
    asked = options._replace(browser=None)  # where it lies makes no difference; whether there is a PDF is looked at
    return digest([__version__, *hashes, rows, sorted(asked.formats), *map(str, asked[1:])])


def states(record: SweepRecord) -> str:
    """What identifies a sweep with its trials, their states and their last figures."""
    info = hashlib.sha256(record.info.model_dump_json().encode()).hexdigest()
    return digest([info, *sorted([row.label.key, cache.mark(row)] for row in record.trials)])


def _told(contents: Contents, files: Iterable[str], options: Options, made: str) -> dict[str, Any]:
    """What a report says of itself, and its main table, for programs and for the terminal."""
    is_there = MAIN in options.wanted("tables")
    tables = _main(contents) if is_there else _accuracy(contents.frame, contents.info)
    shown = {pair: one.to_dict("split") for pair, one in _by_pair(tables).items()}
    return {
        "sweep": contents.info.name,
        "made_with": made,
        "problems": contents.problems,
        "files": [SUMMARY, *files],
        "headline": _as_note(contents.sentences, tables),
        "progress": summary.progress(contents.frame),
        "accuracy": {pair: {**one, "name": "method"} for pair, one in shown.items()},
    }


def _main(contents: Contents) -> list[Table]:
    return [table for section in contents.sections if section.name == MAIN for table in section.tables]


def _frames(told: Mapping[str, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """The tables of `_told` again."""
    return {pair: _frame(**one) for pair, one in told.items()}


def _frame(data: list[list[str]], index: list[str], columns: list[str], name: str) -> pd.DataFrame:
    return pd.DataFrame(data, pd.Index(index, name=name, dtype=object), columns, dtype=object)


def _meta(page: str, name: str) -> str | None:
    found = re.search(rf'<meta name="{name}" content="([^"]*)">', page)
    return html.unescape(found[1]) if found else None


def compose(
    record: SweepRecord,
    epochs: pd.DataFrame | None,
    references: Path | None = None,
    options: Options = WHOLE,
    files: Files | None = None,
) -> Contents:
    """Every table and figure of every plug-in wanted. One that fails is named in `problems` and the others go on.

    Args:
        record: the sweep as the reader gives it.
        epochs: what `frame.epochs` gives; None for no learning curves.
        references: a CSV with further published rows.
        files: of the trials, for plug-ins that ask for them; None for none.

    Raises:
        OtkdError: `references` cannot be read, or the sweep has not what `options` name.
    """
    load_references(references)
    if epochs is None:
        epochs = frame.epochs(record, lambda metric: {})
    trials = options.applied(frame.trials(record, epochs))
    trials.attrs["references"] = None if references is None else str(references)
    problems: list[str] = []
    sections: dict[str, Section] = {}
    for group in ("tables", "plots"):
        for name in options.wanted(group):
            _add(sections, problems, group, name, (trials, epochs, record.info, files or NONE))
    ordered = sorted(sections.values(), key=lambda section: (section.order, section.name))
    _number(ordered)
    if options.warning:
        _mark(ordered, options.warning)
    return Contents(record.info, trials, _sentences(trials, options), ordered, problems)


def _number(sections: list[Section]) -> None:
    """Give tables names of their own where one would overwrite another's files."""
    named = iter(distinct(table for section in sections for table in section.tables))
    for section in sections:
        section.tables = list(islice(named, len(section.tables)))


def _mark(sections: list[Section], warning: str) -> None:
    """Begin every caption with a warning."""
    for section in sections:
        section.tables = [replace(table, caption=f"{warning} {table.caption}") for table in section.tables]
        section.pictures = [picture._replace(caption=f"{warning} {picture.caption}") for picture in section.pictures]


def _sentences(trials: pd.DataFrame, options: Options) -> list[str]:
    return [*filter(None, [options.warning]), *summary.sentences(trials)]


def _by_pair(tables: Sequence[Table]) -> dict[str, pd.DataFrame]:
    """The first of the accuracy tables, cut up."""
    return {pair: tables[0].frame[pair] for pair in tables[0].frame.columns.unique(0)} if tables else {}


def _as_note(sentences: Iterable[str], tables: Sequence[Table]) -> str:
    parts = [formats.md(line) for line in sentences]
    parts += [part for table in tables[:1] for part in (formats.markdown(table), formats.md(table.caption))]
    return "\n\n".join(parts) + "\n"


def _accuracy(trials: pd.DataFrame, info: SweepInfo) -> list[Table]:
    found: list[Table] = plugins.load("tables", MAIN).table(trials, info)
    return found


def _add(sections: dict[str, Section], problems: list[str], group: str, name: str, source: tuple[Any, ...]) -> None:
    trials, epochs, info, files = source
    try:
        module = plugins.load(group, name)
        tables = list(map(_readable, call(module.table, trials, info, files=files))) if group == "tables" else []
        picture = _picture(module, name, trials, epochs, info, files) if group == "plots" else None
        if not tables and picture is None:
            return
        title = str(module.title(trials) if hasattr(module, "title") else module.TITLE)
        order = float(getattr(module, "ORDER", LAST))
    except Exception as error:  # a plug-in of the user's must not cost the report of a long sweep
        problems.append(f"{plugins.GROUPS[group].noun} {name}: {type(error).__name__}: {error}")
        return
    section = sections.setdefault(name, Section(name, title, order, [], []))
    section.order = min(section.order, order)
    section.tables += tables
    section.pictures += [picture] if picture else []


def _readable(table: Any) -> Table:
    """A plug-in's table, if the page can show it.

    Raises:
        TypeError: it is none, or something in it that is to be read is no text.
    """
    if not isinstance(table, Table):
        raise TypeError(f"table() gave a {type(table).__name__} where an otkd.report.table.Table is wanted")
    heads = [part for column in table.frame.columns for part in table.parts(column)]
    texts = [table.name, table.title, table.caption, *heads, *table.frame.to_numpy().ravel()]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"names, cells and caption of a table are text; {table.name} has {text!r}")
    formats.markdown(table).encode()  # finds cells that are not there, and what no file can hold
    return table


def _picture(
    module: Any, name: str, trials: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo, files: Files
) -> Picture | None:
    drawing = call(module.figure, trials, epochs, info, files=files)
    if drawing is None:
        return None
    caption = str(call(module.caption, trials, info, files=files)) if hasattr(module, "caption") else ""
    png = _saved(drawing, "png", "Software")
    spots = style.spots(drawing)
    drawing.set_layout_engine("none")  # the PDF keeps the PNG's layout, which takes long to find
    return Picture(name, str(module.TITLE), caption, png, _saved(drawing, "pdf", "Creator"), spots)


def _saved(drawing: Any, form: str, maker: str) -> bytes:
    """The figure as a file of a form, the same bytes for the same figure."""
    buffer = io.BytesIO()
    undated = {"CreationDate": None} if form == "pdf" else {}
    with rc_context({"pdf.fonttype": 42}):  # TrueType, which publishers ask for
        drawing.savefig(buffer, format=form, facecolor="white", metadata={maker: "otkd", **undated})
    return buffer.getvalue()


def _files(contents: Contents, record: SweepRecord, options: Options) -> dict[str, str | bytes]:
    """Path within the folder → content; the page comes last, as it says that the report is whole."""
    files = _of_tables(contents, options)
    for picture in (picture for section in contents.sections for picture in section.pictures):
        files |= {f"figures/{picture.name}.png": picture.png, f"figures/{picture.name}.pdf": picture.pdf}
    context = _context(contents, record) | {"beside": options.beside}
    files |= {"report.md": _template("report.md.j2", False, context), "trials.csv": formats.csv(contents.frame)}
    page = _template("report.html.j2", True, context)
    files |= _printed(page, options, contents.problems) | {PAGE: page}
    return {path: content for path, content in files.items() if options.writes(path)}


def _of_tables(contents: Contents, options: Options) -> dict[str, str | bytes]:
    """The files of the tables that are wanted; one that cannot be made is named in `problems`."""
    files: dict[str, str | bytes] = {}
    for table in (table for section in contents.sections for table in section.tables):
        for form, write in _writers(table, contents.info.dataset).items():
            path = f"tables/{table.name}.{form}"
            if not options.writes(path):
                continue
            try:
                files[path] = write()
            except Exception as error:  # a plug-in's numbers must not cost the report of a long sweep
                contents.problems.append(f"{path}: {type(error).__name__}: {error}")
    return files


def _writers(table: Table, dataset: str) -> dict[str, Callable[[], bytes]]:
    """Form → what makes the file."""
    return {
        "csv": lambda: formats.csv(table.data).encode(),
        "tex": lambda: formats.latex(table, dataset).encode(),
        "parquet": lambda: formats.parquet(table.data),
        "json": lambda: formats.split(table.data).encode(),
    }


def _printed(page: str, options: Options, problems: list[str]) -> dict[str, str | bytes]:
    """The page as PDF, where there is a browser for it."""
    if options.browser is None:
        return {}
    try:
        return {PDF: pdf.printed(page, options.browser)}
    except OtkdError as error:
        problems.append(f"{PDF}: {error}")
        return {}


def _context(contents: Contents, record: SweepRecord) -> dict[str, Any]:
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return {
        **contents._asdict(),
        "trials": _trials(contents.frame, record),
        "provenance": _provenance(contents.frame, record),
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


def _trials(trials: pd.DataFrame, record: SweepRecord) -> Table:
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
    pages = {row: record.page(run) for row, run in enumerate(trials["run_id"])}
    links = {(row, len(texts) - 1): page for row, page in pages.items() if page}
    return Table("trials", "Every trial", "", shown, trials, links=links)


def _provenance(trials: pd.DataFrame, record: SweepRecord) -> dict[str, str]:
    """Field → its value, or its values with the number of trials that have them."""
    columns = [name for name in trials if name.startswith(frame.PROVENANCE)]
    fields = {name.removeprefix(frame.PROVENANCE): _values(trials[name].dropna()) for name in columns}
    known = trials[names.WALL_S].dropna()
    if len(known):
        alone = "as if each had trained alone" if len(known) > 1 else "as if it had trained alone"
        fields["training time"] = f"{_duration(known.sum())} in {_count(len(known))}, {alone}"
    if record.ui:
        fields["MLflow's pages"] = f"{record.ui} (those of a database are there while `otkd ui` serves them)"
    return fields


def _duration(seconds: float) -> str:
    """In the largest unit of which there is one."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _count(trials: int) -> str:
    return f"{trials} trial{'s' * (trials != 1)}"


def _values(column: pd.Series) -> str:
    counts = column.value_counts(sort=False)
    return (
        str(counts.index[0])
        if len(counts) == 1
        else ", ".join(f"{value} ({_count(count)})" for value, count in counts.items())
    )


def _clear(folder: Path, files: dict[str, str | bytes]) -> None:
    """An old table beside new figures would be false: what an earlier report left and this one does not write goes."""
    for pattern in OURS:
        for path in folder.glob(pattern):
            if path.relative_to(folder).as_posix() not in files:
                path.unlink()


def _write(path: Path, content: str | bytes) -> None:
    if isinstance(content, str):
        write_text(path, content)
        return
    with atomic(path) as temporary:
        temporary.write_bytes(content)
