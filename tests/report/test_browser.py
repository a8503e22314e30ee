"""The page in a real browser: nothing overflows, nothing is loaded, no error is logged."""

from __future__ import annotations

import os
import shutil

import pytest
from report_sweeps import full_sweep, histories

from otkd.report import frame, render

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
WIDTHS = (1280, 420)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no chromium on this machine: install it (`apt-get install chromium`) to open the report"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    record = full_sweep().record()
    return render.build(record, frame.epochs(record, histories(record)), tmp_path_factory.mktemp("page")).html


def test_a_click_on_a_column_sorts_by_it(browser, page_file):
    page = browser.new_page()
    logged: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.goto(page_file.as_uri())
    table = page.locator("#accuracy table").first
    head = table.get_by_role("button", name="test top-1 %, last epoch, n = 3", exact=True)

    def order():
        return table.locator("tbody th").all_text_contents()

    assert order() == ["teacher", "student", "kd", "ot", "ot+kd"]
    head.focus()
    page.keyboard.press("Enter")
    assert order() == ["teacher", "ot+kd", "ot", "kd", "student"], "the teacher stays apart"
    assert table.locator("[aria-sort=descending]").count() == 1
    head.click()
    assert order() == ["teacher", "student", "kd", "ot", "ot+kd"]
    to_kd = table.get_by_role("button", name="Δ to kd, paired").last
    to_kd.click()
    assert order() == ["teacher", "ot+kd", "ot", "student", "kd"], "what has no figure comes last"
    table.get_by_role("button", name="method").click()
    assert order() == ["teacher", "kd", "ot", "ot+kd", "student"]
    for _ in range(2):
        table.get_by_role("button", name="method").click()
    assert order() == ["teacher", "student", "kd", "ot", "ot+kd"]
    assert logged == []
    page.close()


def test_counts_are_sorted_by_what_they_count(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    table = page.locator("#compression table").first
    head = table.get_by_role("button", name="parameters")
    head.click()
    shown = table.locator("tbody tr td:nth-child(4)")
    descending = ["2.20 M", "2.20 M", "700.00 k (3.14×)", "700.00 k (3.14×)"]
    assert shown.all_text_contents() == descending
    head.click()
    assert shown.all_text_contents() == descending[::-1]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_opens(browser, page_file, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    logged: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "wide tables scroll within themselves"
    assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)"))
    assert page.locator("#accuracy tbody tr").count() == 5
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in background[4:-1].split(",")) > 384) == (scheme == "light")
    assert logged == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()
