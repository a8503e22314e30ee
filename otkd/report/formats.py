"""A table as LaTeX, Markdown or CSV text. HTML is the template's business."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa

from otkd.report.stats import DASH
from otkd.report.table import Table

MATH = (
    "leftarrow rightarrow uparrow downarrow leftrightarrow Leftarrow Rightarrow "
    "times pm div leq geq approx cdot infty in surd Delta Sigma Omega "
    "alpha beta gamma delta varepsilon zeta eta theta kappa lambda mu xi pi rho sigma tau varphi chi psi omega"
)
"""Commands of LETTERS, in their order."""
LETTERS = "←→↑↓↔⇐⇒×±÷≤≥≈·∞∈√ΔΣΩαβγδεζηθκλμξπρστφχψω"
ESCAPED = str.maketrans({letter: "\\" + letter for letter in "{}$&%#_"})
WORDS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "[": "{[}",  # at the start of a row it would be read as an option of the row before
        "*": "{*}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "‖": r"$\|$",
        "—": "---",
        "–": "--",
        "…": r"\ldots{}",
        "“": "``",
        "”": "''",
        "‘": "`",
        "’": "'",
        "\u00a0": "~",
        "\n": " ",
        "\r": " ",
        "\t": " ",
        "µ": r"$\mu$",
        "²": "$^2$",
        "³": "$^3$",
        "°": r"$^\circ$",
        "ß": r"\ss{}",
        "æ": r"\ae{}",
        "Æ": r"\AE{}",
        "ø": r"\o{}",
        "Ø": r"\O{}",
        "œ": r"\oe{}",
        "Œ": r"\OE{}",
        "ł": r"\l{}",
        "Ł": r"\L{}",
    }
)
SYMBOLS = str.maketrans(
    {"−": "$-$"} | {letter: rf"$\{name}$" for letter, name in zip(LETTERS, MATH.split(), strict=True)}
)
TEX = ESCAPED | WORDS | SYMBOLS
"""Code point → what LaTeX is to read."""
ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327",
        "`'^~=u.\"rHvc",
        strict=True,
    )
)
"""Combining character → the command that puts it on a letter."""

NUMBER = re.compile(r"([+−-]?)(\d+)(?:\.(\d+))?(?: ± (?=[\d.]*[1-9])(\d+)(?:\.(\d+))?)?")
"""What siunitx aligns; not `± 0.00`, which its version 3 would leave out."""
SIUNITX = (
    r"\protected\def\best{\bfseries}",  # version 2 would expand a plain \bfseries
    r"\sisetup{separate-uncertainty = true, detect-weight = true, retain-explicit-plus = true, "
    "table-align-uncertainty = false}",
)
"""How numbers are set, within their table, in words that versions 2 and 3 of siunitx both know."""
NO_WIDER = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""A table that is wider than the text is scaled down to it; any other stays as it is."""

FIGURE_STARTS = frozenset("0123456789+−—[<")

Held = TypeVar("Held")
REFUSALS = (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError)
"""What Parquet and JSON say to values that they cannot hold."""


def tex(text: str) -> str:
    """Text with everything escaped that LaTeX would take for a command or cannot print."""
    return re.sub(r"[^ -~]", _letter, unicodedata.normalize("NFC", str(text)).translate(TEX))


def _letter(found: re.Match[str]) -> str:
    """A letter with an accent by its command, anything else by its number: pdflatex knows few letters by themselves."""
    parts = unicodedata.normalize("NFD", found[0])
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return rf"\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return rf"\texttt{{U+{ord(found[0]):04X}}}"


class Format(NamedTuple):
    """How wide the numbers of a column are at most, as siunitx has to know to align them."""

    sign: bool
    whole: int
    """Digits before the point."""
    decimals: int
    spread: int
    """Digits of the uncertainty without leading zeros; 0 for none."""

    def __str__(self) -> str:
        decimals = f".{self.decimals}" if self.decimals else ""
        spread = f"({self.spread})" if self.spread else ""
        return f"{'+' if self.sign else ''}{self.whole}{decimals}{spread}"


def latex(table: Table, dataset: str = "") -> str:
    """A `table` environment with booktabs rules, no wider than the text; siunitx aligns numbers at their points.

    Args:
        dataset: for the caption, which is to say it wherever the table is copied to; empty for none.
    """
    columns = [table.parts(column) for column in table.frame.columns]
    formats = _formats(table)
    header = [_groups(columns)] if any(group for group, _ in columns) else []
    title = f"{table.title}, on {dataset}" if dataset else table.title
    name = tex(str(table.frame.index.name or ""))
    words = [f"{{{_stack(word)}}}" if form else _stack(word) for form, (_, word) in zip(formats, columns, strict=True)]
    header.append(" & ".join([name, *words]) + r" \\")
    body = [_line(table, row, formats) for row in range(len(table.frame))]
    if table.apart:
        body.insert(table.apart, r"\midrule")
    numeric = numeric_columns(table)
    kinds = [
        f"S[table-format={form}]" if form else "c" if figures else "l"
        for form, figures in zip(formats, numeric, strict=True)
    ]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage{siunitx} (version 2 or 3)",
            r"\begin{table}",
            r"\centering",
            *SIUNITX,
            rf"\caption{{{tex(title)}. {tex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            r"\smallskip",
            NO_WIDER,
            rf"\begin{{tabular}}{{l{''.join(kinds)}}}",
            *(r"\toprule", *header, r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _formats(table: Table) -> list[Format | None]:
    """The format of each column half of whose cells or more are a number, with a spread or without; None for others."""
    return [_format([str(cell) for cell in column if cell]) for _, column in table.frame.items()]


def _format(cells: list[str]) -> Format | None:
    found = [match for cell in cells if (match := NUMBER.fullmatch(cell))]
    if not found or 2 * len(found) < len([cell for cell in cells if cell != DASH]):
        return None
    return Format(
        sign=any(match[1] for match in found),
        whole=max(len(match[2]) for match in found),
        decimals=max(len(match[3] or "") for match in found),
        spread=max(len(f"{match[4]}{match[5] or ''}".lstrip("0")) or 1 if match[4] else 0 for match in found),
    )


def markdown(table: Table) -> str:
    """A pipe table without its caption."""
    flat = table.flat()
    lines = [[str(flat.index.name or ""), *flat.columns]]
    lines += [[name, *cells] for name, cells in zip(flat.index, flat.to_numpy(), strict=True)]
    texts = [[md(str(cell)) for cell in line] for line in lines]
    for (row, column), address in table.links.items():
        texts[row + 1][column + 1] = f"[{texts[row + 1][column + 1]}](<{address}>)"
    for row, column in table.bold:
        texts[row + 1][column + 1] = f"**{texts[row + 1][column + 1]}**"
    rule = ["---", *("---:" if numeric else "---" for numeric in numeric_columns(table))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [texts[0], rule, *texts[1:]])


def md(text: str) -> str:
    """Text with everything escaped that Markdown (or HTML within it) would take for markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\|*`\[\]])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", re.sub(r"\s+", " ", text))


def csv(frame: pd.DataFrame) -> str:
    """The numbers at full precision."""
    return frame.to_csv(index=False, lineterminator="\n")


def parquet(frame: pd.DataFrame) -> bytes:
    """The numbers with their types; a column that Parquet refuses is text, and of two of one name the first stays."""
    return _held(frame, lambda whole: bytes(whole.to_parquet(index=False)))


def split(frame: pd.DataFrame) -> str:
    """`{"columns": […], "data": […]}`, as `mlflow.log_table` writes a table; what is no number is null.

    A column that JSON refuses is text, and of two of one name the first stays.
    """
    words = {"orient": "split", "index": False, "double_precision": 15, "default_handler": str}
    return _held(frame, lambda whole: str(whole.to_json(**words)))


def _held(frame: pd.DataFrame, write: Callable[[pd.DataFrame], Held]) -> Held:
    """What `write` makes of the frame, with columns as text that it refuses."""
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    try:
        return write(frame)
    except REFUSALS:
        refused = [name for name in frame if not _holds(frame[[name]], write)]
        return write(frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in refused}))


def _holds(column: pd.DataFrame, write: Callable[[pd.DataFrame], object]) -> bool:
    try:
        write(column)
    except REFUSALS:
        return False
    return True


def numeric_columns(table: Table) -> list[bool]:
    """Which columns hold figures, and are aligned as such."""
    shares = [[str(cell)[:1] in FIGURE_STARTS for cell in column if cell] for _, column in table.frame.items()]
    return [2 * sum(share) > len(share) for share in shares]


def spans(table: Table) -> list[tuple[str, int]]:
    """Column groups in order with how many columns each has."""
    return _widths([table.parts(column) for column in table.frame.columns])


def _widths(columns: list[tuple[str, str]]) -> list[tuple[str, int]]:
    return [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column[0])]


def _groups(columns: list[tuple[str, str]]) -> str:
    """The upper header row: each group over its columns, with a short rule beneath."""
    cells, rules, start = [""], [], 2
    for group, width in _widths(columns):
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{tex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return " & ".join(cells) + r" \\" + "\n" + "".join(rules)


def _stack(word: str) -> str:
    """A long column name on several lines, broken at its commas."""
    parts = [tex(part) for part in word.split(", ")]
    return parts[0] if len(parts) == 1 else "".join([r"\shortstack{", r" \\ ".join(parts), "}"])


def _line(table: Table, row: int, formats: list[Format | None]) -> str:
    cells = [
        _cell(str(text), form is not None, (row, column) in table.bold)
        for column, (text, form) in enumerate(zip(table.frame.iloc[row], formats, strict=True))
    ]
    return " & ".join([tex(table.frame.index[row]), *cells]) + r" \\"


def _cell(text: str, aligned: bool, bold: bool) -> str:
    """A cell; in a column of numbers braces keep what is no number, or has a note, from siunitx."""
    if not aligned:
        return rf"\textbf{{{tex(text)}}}" if bold else tex(text)
    face = r"\best " if bold else ""
    if NUMBER.fullmatch(text):
        return face + text.replace("−", "-").replace("±", r"\pm")
    return f"{{{face}{tex(text)}}}" if text else ""
