"""A table as LaTeX, Markdown or CSV text. HTML is the template's business."""

from __future__ import annotations

import re
from itertools import groupby

import pandas as pd
import pyarrow as pa

from otkd.report.table import Table

MATH = (
    "leftarrow rightarrow times pm div leq geq approx cdot "
    "Delta Sigma alpha beta gamma varepsilon eta kappa lambda mu rho sigma tau"
)
"""Commands of the letters in SYMBOLS, in their order."""
ESCAPED = str.maketrans({letter: "\\" + letter for letter in "{}$&%#_"})
WORDS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
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
    }
)
SYMBOLS = str.maketrans(
    {"−": "$-$"} | {letter: rf"$\{name}$" for letter, name in zip("←→×±÷≤≥≈·ΔΣαβγεηκλμρστ", MATH.split(), strict=True)}
)
TEX = ESCAPED | WORDS | SYMBOLS
"""Code point → what LaTeX is to read."""

FIGURE_STARTS = frozenset("0123456789+−—[<")


def tex(text: str) -> str:
    """Text with everything escaped that LaTeX would take for a command or cannot print."""
    return str(text).translate(TEX)


def latex(table: Table) -> str:
    """A `table` environment with booktabs rules."""
    columns = [table.parts(column) for column in table.frame.columns]
    header = [_groups(columns)] if any(group for group, _ in columns) else []
    name = tex(str(table.frame.index.name or ""))
    header.append(" & ".join([name, *(_stack(word) for _, word in columns)]) + r" \\")
    body = [_line(table, row) for row in range(len(table.frame))]
    if table.apart:
        body.insert(table.apart, r"\midrule")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.title)}. {tex(table.caption)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{''.join('c' if numeric else 'l' for numeric in numeric_columns(table))}}}",
            *(r"\toprule", *header, r"\midrule", *body, r"\bottomrule"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown(table: Table) -> str:
    """A pipe table without its caption."""
    flat = table.flat()
    lines = [[str(flat.index.name or ""), *flat.columns]]
    lines += [[name, *cells] for name, cells in zip(flat.index, flat.to_numpy(), strict=True)]
    texts = [[md(str(cell)) for cell in line] for line in lines]
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
    """The numbers with their types; a column that has none is text, and of two of one name the first stays."""
    frame = frame.loc[:, ~frame.columns.duplicated()]
    untyped = [name for name, column in frame.items() if not _has_type(column)]
    return bytes(frame.astype(dict.fromkeys(untyped, str)).to_parquet(index=False))


def _has_type(column: pd.Series) -> bool:
    try:
        pa.array(column, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
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


def _line(table: Table, row: int) -> str:
    cells = [tex(cell) for cell in table.frame.iloc[row]]
    cells = [rf"\textbf{{{cell}}}" if (row, column) in table.bold else cell for column, cell in enumerate(cells)]
    return " & ".join([tex(table.frame.index[row]), *cells]) + r" \\"
