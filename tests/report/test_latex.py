"""Tables as LaTeX: numbers aligned by siunitx, names escaped, and every table compiles as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from figure_sweeps import HOSTILE, hostile
from report_sweeps import full_sweep, histories

from otkd.report import formats, frame, render
from otkd.report import tables as tables_package
from otkd.report.table import Table


def of(*columns: list[str], names: tuple[str, ...] = ("a", "b", "c"), bold=frozenset()) -> str:
    rows = [f"row{index}" for index in range(len(columns[0]))]
    cells = pd.DataFrame(dict(zip(names, columns, strict=False)), index=pd.Index(rows, name="method"))
    return formats.latex(Table("t", "Title", "Caption.", cells, cells, bold))


def kinds(text: str) -> list[str]:
    spec = re.search(r"\\begin\{tabular\}\{(.+)\}", text)[1]
    return re.findall(r"S\[[^\]]*\]|[a-z]", spec)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["71.20 ± 0.30", "9.25 ± 1.05"], "S[table-format=2.2(3)]"),
        (["+1.20 ± 0.05", "−0.30 ± 0.12"], "S[table-format=+1.2(2)]"),
        (["1234", "7"], "S[table-format=4]"),
        (["0.041", "< 0.001", "0.5"], "S[table-format=1.3]"),
        (["—", "—", "12.5"], "S[table-format=2.1]"),
        (["1.00×", "0.72×"], "c"),
        (["[+0.1, +0.5]", "[−0.1, +0.5]"], "c"),
        (["71.20 (n = 1)", "baseline", "3.00"], "c"),
        (["71.20 (n = 1)", "baseline", "3.00", "4.00"], "S[table-format=1.2]"),
        (["best", "auto"], "l"),
        (["—", "—"], "c"),
    ],
)
def test_a_column_of_numbers_is_aligned_by_siunitx(cells, kind):
    assert kinds(of(cells)) == ["l", kind]


def test_cells_that_are_no_numbers_stand_in_braces():
    text = of(["71.20 ± 0.30", "70.00 (n = 1)", "−1.5", "", "2.00 ± 0.00"], ["a_b", "", "x", "d", "e"])
    rows = [line for line in text.splitlines() if line.startswith("row")]
    assert rows == [
        r"row0 & 71.20 \pm 0.30 & a\_b \\",
        r"row1 & {70.00 (n = 1)} &  \\",
        r"row2 & -1.5 & x \\",
        r"row3 &  & d \\",
        r"row4 & {2.00 $\pm$ 0.00} & e \\",
    ]
    assert "method & {a} & b \\\\" in text


def test_the_best_cells_stay_bold_and_aligned():
    text = of(["71.20 ± 0.30", "70.10 ± 0.20"], ["x", "y"], bold=frozenset({(0, 0), (1, 1)}))
    assert r"row0 & \best 71.20 \pm 0.30 & x \\" in text
    assert r"row1 & 70.10 \pm 0.20 & \textbf{y} \\" in text
    assert r"\protected\def\best{\bfseries}" in text
    assert text.startswith("% needs \\usepackage{booktabs}, \\usepackage{graphicx} and \\usepackage{siunitx}")


def test_letters_that_pdflatex_does_not_know():
    assert formats.tex("é Ł ß İ →⇒ 漢\x07[*") == (
        r"\'{e} \L{} \ss{} \.{I} $\rightarrow$$\Rightarrow$ \texttt{U+6F22}\texttt{U+0007}{[}{*}"
    )
    assert formats.tex(HOSTILE).isascii()


@pytest.fixture(scope="module")
def pdflatex() -> str:
    path = shutil.which("pdflatex")
    packages = "texlive-latex-base texlive-latex-recommended texlive-science"
    if path is None:
        reason = f"no pdflatex on this machine: `apt-get install {packages}` to compile the tables"
        pytest.skip(reason)
    found = subprocess.run(["kpsewhich", "siunitx.sty", "booktabs.sty"], capture_output=True, text=True, check=False)
    if len(found.stdout.split()) < 2:
        pytest.skip(f"pdflatex lacks siunitx or booktabs: `apt-get install {packages}`")
    return path


@pytest.mark.parametrize("version", ["", "[=v2]"], ids=["newest", "version 2"])
def test_every_table_compiles(pdflatex, tmp_path_factory, tables, version):
    folder = tmp_path_factory.mktemp("tex")
    inputs = "\n".join(rf"\input{{{path.as_posix()}}}\clearpage" for path in tables)
    packages = rf"\usepackage{{booktabs}}\usepackage{{graphicx}}\usepackage{{siunitx}}{version}"
    (folder / "all.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}{inputs}\end{{document}}")
    command = [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    made = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False, env=dict(os.environ))
    said = made.stdout.decode(errors="replace")
    assert made.returncode == 0, "\n".join(re.findall(r"^!.*(?:\n.*){3}", said, re.MULTILINE))
    assert f"({len(tables)} pages" in said
    assert not re.findall(r"^Overfull .hbox.*", said, re.MULTILINE)


def test_our_own_words_have_no_letter_that_pdflatex_does_not_know():
    sources = [path.read_text() for path in Path(tables_package.__file__).parent.glob("*.py")]
    letters = sorted({letter for text in sources for letter in text if not letter.isascii()})
    assert letters
    assert [letter for letter in letters if "U+" in formats.tex(letter)] == []


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    found = []
    for name, sweep in (("full", full_sweep(val=True)), ("hostile", hostile())):
        record = sweep.record()
        contents = render.compose(record, frame.epochs(record, histories(record)))
        folder = tmp_path_factory.mktemp(name)
        for section in contents.sections:
            for table in section.tables:
                found.append(folder / f"{table.name}.tex")
                found[-1].write_text(formats.latex(table))
    return found
