"""The page in a real browser: nothing overflows, nothing is loaded, no error is logged."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from report_sweeps import TERMS, Sweep, full_sweep, histories

from otkd.report import frame, render
from otkd.report.options import checked

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
WIDTHS = (1440, 1024, 420)
CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const found = parts(getComputedStyle(node).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  for (let text; (text = texts.nextNode()); ) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${node.tagName} ${text.data.trim().slice(0, 40)}`);
  }
  return low;
}"""
"""What text has less contrast to its background than WCAG 2 asks for (AA)."""


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


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory):
    """A page of tables alone, of seven pairs."""
    sweep = Sweep()
    for place in range(7):
        for method in TERMS:
            for seed in range(2):
                sweep.student(method, 70.0 + seed, seed, (f"student_{place}_16_2", f"teacher_{place}_40_2"))
    options = checked(formats=["html"], only=["accuracy", "ranks"])
    return render.build(sweep.record(), None, tmp_path_factory.mktemp("wide"), options=options).html


def test_a_table_that_is_cut_says_so_and_scrolls_by_keyboard(browser, wide_file):
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    page.goto(wide_file.as_uri())
    box = page.locator("#accuracy .scroll").first
    hint = """(node) => getComputedStyle(node.nextElementSibling, "::before").content"""
    assert "Scrolls sideways" in box.evaluate(hint)
    assert box.evaluate("(node) => getComputedStyle(node).maskImage") != "none", "it fades where there is more"
    box.focus()
    assert box.evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(node) => node.scrollLeft > 0", arg=box.element_handle())
    box.evaluate("(node) => { node.scrollLeft = 1e6; }")
    page.wait_for_function("(node) => !node.classList.contains('more')", arg=box.element_handle())
    assert page.locator("#ranks .cut").count() == 0
    page.close()


def test_a_wide_table_is_printed_whole(browser, wide_file):
    page = browser.new_page(viewport={"width": 1016, "height": 700})  # A4 on its side within its margins
    page.goto(wide_file.as_uri())
    page.emulate_media(media="print")
    box = page.locator("#accuracy .scroll").first
    assert box.evaluate("(node) => node.scrollWidth - node.clientWidth") <= 1
    assert box.locator("table").bounding_box()["width"] <= 1017
    assert "Scrolls" not in box.evaluate("""(node) => getComputedStyle(node.nextElementSibling, "::before").content""")
    page.close()


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
    assert page.evaluate(CONTRAST) == []
    assert logged == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def tip(page):
    """The shown tooltips: their texts, and where the first lies."""
    return page.evaluate("""() => [...document.querySelectorAll(".spot")]
        .filter((spot) => getComputedStyle(spot, "::after").display !== "none")
        .map((spot) => spot.getAttribute("aria-label"))""")


@pytest.mark.parametrize("width", WIDTHS)
def test_points_of_a_figure_tell_their_values(browser, page_file, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_file.as_uri())
    spots = page.locator("#cost .spot")
    assert spots.count() == 8
    assert tip(page) == []
    spots.nth(1).hover()
    (told,) = tip(page)
    assert told.startswith("kd: 74.52 ± 0.41 %, n = 3")
    for place in range(page.locator(".spot").count()):
        page.locator(".spot").nth(place).focus()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
    page.close()


def test_the_keyboard_goes_from_point_to_point(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    page.locator("#cost .paper").focus()
    page.keyboard.press("Tab")
    assert [text.split(":")[0] for text in tip(page)] == ["student"]
    for key, method in (("ArrowRight", "kd"), ("End", "ot+kd"), ("ArrowDown", "ot+kd"), ("ArrowLeft", "ot")):
        page.keyboard.press(key)
        assert [text.split(":")[0] for text in tip(page)] == [method]
    page.keyboard.press("Escape")
    assert tip(page) == []
    assert page.locator("#cost .spot[tabindex='0']").count() == 1, "one stop of the Tab key a figure"
    page.close()


def test_a_point_lies_on_its_figure(browser, page_file):
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    page.goto(page_file.as_uri())
    image, spot = page.locator("#cost img").bounding_box(), page.locator("#cost .spot").nth(1).bounding_box()
    found = re.search(r"left:([\d.]+)%;top:([\d.]+)%", page.locator("#cost .spot").nth(1).get_attribute("style"))
    left, top = (float(share) / 100 for share in found.groups())
    assert spot["x"] + spot["width"] / 2 == pytest.approx(image["x"] + left * image["width"], abs=1)
    assert spot["y"] + spot["height"] / 2 == pytest.approx(image["y"] + top * image["height"], abs=1)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_shows_tables_whole_and_no_links_to_sections(browser, page_file, scheme):
    page = browser.new_page(viewport={"width": 688, "height": 1000}, color_scheme=scheme)  # A4 within its margins
    page.goto(page_file.as_uri())
    page.emulate_media(media="print")
    for selector in ("nav", ".spots"):
        assert not page.locator(selector).first.is_visible()
    wide = page.evaluate("""() => [...document.querySelectorAll("table, img")]
        .filter((node) => node.getBoundingClientRect().right > 690).map((node) => node.textContent.slice(0, 40))""")
    assert wide == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
