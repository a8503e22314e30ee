"""Text and tables on the page. Names that users give appear as they are: nothing here is read as Markdown or HTML.

Streamlit reads Markdown, emoji codes and formulas in most of what it shows. So whatever may hold a name goes through
here (escaped HTML), into a select box, a data frame or a code block, which take text as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape

import pandas as pd
import streamlit as st

from otkd.report import formats
from otkd.report.table import Table

STYLE = """<style>
.block-container { padding-top: 3.2rem; padding-bottom: 4rem; }
.otkd { overflow-wrap: anywhere; line-height: 1.45; margin: 0; }
p.otkd { max-width: 78ch; }
.otkd code { font-size: .9em; background: rgba(128, 128, 128, .15); border-radius: 3px; padding: .1em .3em; }
.otkd-title { font-size: 1.5rem; font-weight: 600; }
.otkd-head { font-size: 1.1rem; font-weight: 600; padding-top: .5rem; }
.otkd-small { font-size: .85rem; opacity: .75; }
.otkd-notice { border-left: 4px solid #D55E00; background: rgba(213, 94, 0, .08); padding: .6rem .9rem; }
ul.otkd-legend.otkd-legend { list-style: none; margin: 0; padding: 0; }
.otkd-legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.otkd-legend li { font-size: .85rem; margin: 0; overflow-wrap: anywhere; }
.otkd-legend span { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .45em; }
.otkd-scroll { overflow-x: auto; max-width: 100%; }
.otkd-scroll:focus-visible, label:has([type=radio]:focus-visible, [type=checkbox]:focus-visible),
  .stElementToolbar button:focus-visible { outline: 2px solid #0072B2; }
.stElementToolbar:focus-within { opacity: 1 !important; z-index: 1000 !important; }
.otkd-table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.otkd-table th, .otkd-table td { padding: .3rem .7rem; text-align: left; white-space: nowrap; border: 0;
  border-bottom: 1px solid rgba(128, 128, 128, .25); }
.otkd-table td.otkd-long { white-space: normal; min-width: 20rem; max-width: 44rem; overflow-wrap: anywhere; }
.otkd-table thead th { font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 5.5rem; }
.otkd-table thead tr:last-child th { border-bottom: 2px solid rgba(128, 128, 128, .6); }
.otkd-table tbody th { font-weight: 500; }
@media (max-width: 640px) { .otkd-table tbody th { white-space: normal; min-width: 7rem; } }
.otkd-table .otkd-number { text-align: right; }
.otkd-table .otkd-best { font-weight: 700; }
.otkd-table .otkd-apart > * { border-bottom: 2px solid rgba(128, 128, 128, .6); }
</style>"""

LONG = 60
"""Letters from which on a cell is broken into lines."""
CODE = re.compile("`([^`]+)`")


def style() -> None:
    """What all of the below looks like; once a page."""
    st.html(STYLE)


def say(text: str, code: bool = False) -> None:
    """A paragraph; with `code`, for texts of ours, what stands between backticks is code."""
    _html("p", text, "", code)


def notice(text: str, code: bool = False) -> None:
    """A paragraph that must not be overlooked."""
    _html("p", text, "notice", code)


def small(text: str, code: bool = False) -> None:
    """A caption."""
    _html("p", text, "small", code)


def title(text: str) -> None:
    """The page's heading."""
    _html("h1", text, "title")


def head(text: str) -> None:
    """A section's heading."""
    _html("h2", text, "head")


def show(table: Table, caption: bool = True) -> None:
    """A report's table, as the report has it, with its caption."""
    st.html(html_of(table))
    if caption and table.caption:
        small(table.caption)


def plain(frame: pd.DataFrame, name: str) -> None:
    """A frame of texts with its index, as a table; `name` is what a screen reader calls it."""
    st.html(html_of(Table("", name, "", frame.astype(object), frame)))


def legend(colours: Mapping[str, str]) -> None:
    """Names beside their colours; a row that is broken where the page is narrow."""
    items = "".join(
        f'<li><span style="background:{escape(colour)}"></span>{escape(name)}</li>' for name, colour in colours.items()
    )
    st.html(f'<ul class="otkd-legend">{items}</ul>')


def html_of(table: Table) -> str:
    """The table with everything in it escaped; wide ones scroll by themselves, by keys too."""
    numeric = formats.numeric_columns(table)
    columns = [table.parts(column) for column in table.frame.columns]
    groups = "".join(f'<th scope="colgroup" colspan="{width}">{escape(group)}</th>' for group, width in _groups(table))
    top = f"<tr><th></th>{groups}</tr>" if any(group for group, _ in columns) else ""
    names = "".join(
        f'<th scope="col"{_class("number" * number)}>{escape(word)}</th>'
        for (_, word), number in zip(columns, numeric, strict=True)
    )
    head = f'{top}<tr><th scope="col">{escape(str(table.frame.index.name or ""))}</th>{names}</tr>'
    body = "".join(_row(table, row, numeric) for row in range(len(table.frame)))
    return (
        f'<div class="otkd-scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'
        f'<table class="otkd-table"><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    )


def _groups(table: Table) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = formats.spans(table)
    return found


def _row(table: Table, row: int, numeric: list[bool]) -> str:
    cells = "".join(
        f"<td{_class('number' * number, 'best' * ((row, column) in table.bold), 'long' * (len(cell) > LONG))}>"
        f"{escape(cell)}</td>"
        for column, (cell, number) in enumerate(zip(map(str, table.frame.iloc[row]), numeric, strict=True))
    )
    last = _class("apart" * (row + 1 == table.apart))
    return f'<tr{last}><th scope="row">{escape(str(table.frame.index[row]))}</th>{cells}</tr>'


def _class(*kinds: str) -> str:
    words = " ".join(f"otkd-{kind}" for kind in kinds if kind)
    return f' class="{words}"' if words else ""


def _html(tag: str, text: str, kind: str, code: bool = False) -> None:
    words = f"otkd otkd-{kind}" if kind else "otkd"
    shown = CODE.sub(r"<code>\1</code>", escape(text)) if code else escape(text)
    st.html(f'<{tag} class="{words}">{shown}</{tag}>')
