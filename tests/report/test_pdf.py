"""The page on paper, by a real browser; and browsers that fail."""

from __future__ import annotations

import os
import re
import time
import zlib
from pathlib import Path

import pytest
from report_sweeps import full_sweep, histories

from otkd.core.errors import OtkdError
from otkd.report import frame, pdf, render
from otkd.report.options import WHOLE, checked


@pytest.fixture(scope="module")
def browser() -> Path:
    found = pdf.browser()
    if found is None:
        reason = "no chromium on this machine: install it (`apt-get install chromium`) to print the report"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def plain(content: bytes) -> bytes:
    """The PDF with its compressed streams opened."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    opened = []
    for stream in streams:
        try:
            opened.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return content + b"".join(opened)


def test_the_report_is_printed(browser, tmp_path):
    record = full_sweep().record()
    options = WHOLE._replace(browser=browser)
    made = render.build(record, frame.epochs(record, histories(record)), tmp_path, options=options)
    assert made.problems == ()
    content = plain((tmp_path / "report.pdf").read_bytes())
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 2
    assert re.search(rb"/FontFile[23]?\b", content), "fonts are in the file"
    assert content.count(b"/Subtype /Image") + content.count(b"/Subtype/Image") >= 4, "so are the figures"
    assert made.paths[-1] == made.html, "the page is written last"


def test_a_report_without_a_browser_has_no_pdf_of_the_page(tmp_path):
    record = full_sweep().record()
    render.build(record, None, tmp_path, options=checked(only=["accuracy"]))
    assert not (tmp_path / "report.pdf").exists()
    assert (tmp_path / "figures/accuracy.pdf").exists()


def script(folder: Path, text: str) -> Path:
    path = folder / "browser"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_browser_that_fails_is_a_problem_and_the_rest_is_written(tmp_path):
    record = full_sweep().record()
    broken = script(tmp_path, "echo first >&2; echo no display >&2; exit 3")
    options = checked(only=["accuracy"])._replace(browser=broken)
    made = render.build(record, None, tmp_path / "out", options=options)
    assert made.problems == (f"report.pdf: {broken} printed nothing: no display",)
    assert made.html.exists()


def test_a_browser_that_hangs_is_ended_with_its_children(tmp_path):
    hanging = script(tmp_path, f"sleep 300 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(OtkdError, match=r"printed nothing in 1 s"):
        pdf.printed("<p>", hanging, patience_s=1)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            return
        time.sleep(0.05)
    pytest.fail("a child of the browser goes on")


def test_a_browser_that_is_none(tmp_path):
    with pytest.raises(OtkdError, match="does not start: No such file"):
        pdf.printed("<p>", tmp_path / "nothing")


def test_the_sandbox_is_off_for_root_alone(tmp_path, monkeypatch):
    noting = script(tmp_path, f'echo "$@" > {tmp_path}/said')
    for user, off in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        with pytest.raises(OtkdError, match="said nothing"):
            pdf.printed("<p>", noting)
        assert ("--no-sandbox" in (tmp_path / "said").read_text()) is off


def test_the_first_browser_on_the_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pdf.browser() is None
    (tmp_path / "google-chrome").touch(mode=0o755)
    assert pdf.browser() == tmp_path / "google-chrome"
