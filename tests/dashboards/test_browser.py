"""The page as `make dashboard` starts it, over a small real sweep, in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlparse

import psutil
import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
HOSTILE = "ot <b>x</b> $y$ _a_ :smile:"
SWEEP = f"""
name: live
question: Does the page read well?
data: {{name: digits, val: 0.2, limit: 100}}
pairs:
  - {{teacher: resnet8, student: resnet8}}
train: {{epochs: 2, batch_size: 32}}
methods:
  student: {{ce: 1}}
  kd: {{ce: 0.1, kd: {{weight: 0.9}}}}
  "{HOSTILE}": {{ce: 1, transport: {{weight: 1, solver: {{name: sinkhorn}}}}}}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def surroundings() -> dict[str, str]:
    taken = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "OTKD_DATA_DIR", "OTKD_RUNS", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in taken}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, surroundings: dict[str, str]) -> Iterator[tuple[int, Any]]:
    """Port and process of the page over a sweep that has ended."""
    folder = tmp_path_factory.mktemp("live")
    file, runs = folder / "live.yaml", folder / "runs"
    file.write_text(SWEEP, encoding="utf-8")
    otkd = [sys.executable, "-c", "from otkd.cli import main; main()", "sweep", str(file)]
    command = [*otkd, "--local", "--quiet", "--device", "cpu", "--runs", str(runs)]
    swept = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=900)
    assert swept.returncode == 0, swept.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dashboards", "--runs", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=surroundings, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port, process
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: Any) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the server does not listen")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no chromium on this machine: install it (`apt-get install chromium`) to open the page"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


def opened(browser: Any, port: int, view: str) -> tuple[Any, list[str]]:
    """The page with a view open, at the narrowest width that it is made for, and the hosts that it asked."""
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    page.set_default_timeout(180_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/?view={quote(view)}")
    page.locator(".otkd-small", has_text="Read 20").wait_for()
    return page, asked


def choose(page: Any, label: str, option: str) -> None:
    """By keys alone."""
    box = page.get_by_role("combobox", name=label)
    box.focus()
    box.fill(option)
    page.get_by_role("option", name=option, exact=True).wait_for()
    box.press("Enter")


def test_it_listens_here_alone(server: tuple[int, Any]) -> None:
    port, process = server
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = [one.laddr for each in family for one in each.net_connections() if one.status == psutil.CONN_LISTEN]
    assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", port)}


def test_filter_compare_and_open(server: tuple[int, Any], browser: Any) -> None:
    page, asked = opened(browser, server[0], "Leaderboard")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1024
    rows = page.locator(".otkd-table tbody th")
    assert rows.all_text_contents() == ["teacher", "student", "kd", HOSTILE], "names are shown as they are"
    choose(page, "Methods", HOSTILE)
    rows.nth(2).wait_for(state="detached")
    assert rows.all_text_contents() == ["teacher", HOSTILE]

    page.get_by_text("Compare two").click()
    page.get_by_text(f"Difference: {HOSTILE} less kd").wait_for()
    assert page.get_by_text("common seeds").count() == 1
    page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()

    page.get_by_text("One trial").click()
    page.get_by_text("resnet8 ← resnet8 · student · seed 0").wait_for()
    page.get_by_text("Its settings, every default filled in").click()
    page.get_by_text("batch_size").first.wait_for()
    link = page.get_by_role("link", name="Its run in MLflow").get_attribute("href")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/")
    choose(page, "Method", "kd")
    page.get_by_text("resnet8 ← resnet8 · kd · seed 0").wait_for()
    key = page.locator(".otkd", has_text="finished · key").inner_text().split()[-1]
    assert key[:10] in page.get_by_role("combobox", name="Trial").input_value()
    assert page.get_by_test_id("stException").count() == 0
    assert {urlparse(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    page.close()


@pytest.mark.parametrize("view", ["Overview", "Ablations", "Cost", "Failures"])
def test_a_view_opens(server: tuple[int, Any], browser: Any, view: str) -> None:
    page, _ = opened(browser, server[0], view)
    assert page.get_by_test_id("stException").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1024
    page.close()


def test_a_port_that_is_taken_is_said(server: tuple[int, Any], surroundings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dashboards", "--port", str(server[0])]
    ended = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert f"port {server[0]} is taken; name another with --port." in ended.stderr


def test_it_ends_when_it_is_told_to(server: tuple[int, Any]) -> None:
    _, process = server
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert process.poll() is not None
