"""What a colleague sees: a small sweep in MLflow's pages, in a real browser, and its champion asked for predictions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import pytest
import torch

from otkd.core import names
from otkd.core.layout import Layout
from otkd.core.trial import Data
from otkd.models.factory import create
from otkd.track.registry import CHAMPION
from otkd.track.store import Store, connect, search

pytestmark = pytest.mark.long

QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
OTKD = [sys.executable, "-c", "from otkd.cli import main; main()"]
MODEL = "otkd-resnet8-from-resnet8-digits"
TITLE = "resnet8 ← resnet8 · student · seed 0"
SWEEP = """
name: pages
question: Does the record read well?
data: {name: digits, val: 0.2, limit: 100}
pairs:
  - {teacher: resnet8, student: resnet8}
train: {epochs: 2, batch_size: 32}
methods:
  student: {ce: 1}
  ot: {ce: 1, transport: {weight: 1, points: batch, layer: embedding, solver: {name: sinkhorn}}}
"""


class Recorded(NamedTuple):
    """A sweep that has ended."""

    store: Store
    layout: Layout


@pytest.fixture(scope="module")
def surroundings() -> dict[str, str]:
    taken = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "OTKD_DATA_DIR", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in taken}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, surroundings: dict[str, str]) -> Recorded:
    folder = tmp_path_factory.mktemp("pages")
    file, runs = folder / "pages.yaml", folder / "runs"
    file.write_text(SWEEP, encoding="utf-8")
    command = [*OTKD, "sweep", str(file), "--local", "--quiet", "--device", "cpu", "--runs", str(runs)]
    ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=900)
    assert ended.returncode == 0, ended.stderr
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        return Recorded(connect(Layout(runs)), Layout(runs))


@pytest.fixture(scope="module")
def address(recorded: Recorded, surroundings: dict[str, str]) -> Iterator[str]:
    """What `otkd ui` prints: where its view is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*OTKD, "ui", "--port", str(port), "--runs", str(recorded.layout.root)]
    server = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        said = next((line for line in server.stdout if line.startswith("MLflow on ")), "")
        assert said, "no address was printed"
        yield said.split()[2]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=300)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """One page for all tests, of a laptop's size: MLflow's scripts take seconds to load."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "no chromium on this machine: install it (`apt-get install chromium`) to open MLflow's pages"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        opened = browser.new_page(viewport={"width": 1440, "height": 900})
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


def open_page(page: Any, address: str, path: str) -> None:
    """Open a page of the same server as if it was the first: what was shown before has no part in it."""
    page.goto("about:blank")
    page.goto(address.partition("#")[0] + path)


def run_of(store: Store, method: str) -> str:
    (run,) = search(store, f"tags.`{names.TAG_METHOD}` = '{method}'")
    return str(run.info.run_id)


def sweep_of(store: Store) -> str:
    (run,) = search(store, f"tags.`{names.TAG_KIND}` = 'sweep'")
    return str(run.info.run_id)


def test_the_view_has_what_matters_first(address: str, page: Any) -> None:
    page.goto(address)
    page.get_by_text("4 matching runs").wait_for()
    title = page.get_by_text(TITLE, exact=True).first
    title.wait_for()
    assert title.evaluate("span => span.scrollWidth <= span.clientWidth"), "the trial's whole title can be read"
    header = page.locator(f"[col-id='metrics.`{names.test('last', 'top1')}`'].ag-header-cell")
    val = page.locator(f"[col-id='metrics.`{names.BEST_VAL_TOP1}`'].ag-header-cell")
    edge = page.locator(".ag-root-wrapper").first.bounding_box()
    assert header.bounding_box()["x"] < val.bounding_box()["x"]
    assert val.bounding_box()["x"] + val.bounding_box()["width"] <= edge["x"] + edge["width"], "nothing to be scrolled"
    cell = page.locator(f".ag-row [col-id='metrics.`{names.test('last', 'top1')}`']")
    assert float(cell.first.inner_text()) > 0


def test_the_view_has_charts_of_every_run(address: str, page: Any) -> None:
    open_page(page, address, f"#{address.partition('#')[2]}&compareRunsMode=CHART")
    page.get_by_text("What counts").wait_for()
    page.locator(".js-plotly-plot .bars .point").nth(2).wait_for()
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(2).wait_for(state="attached")
    assert page.locator(".js-plotly-plot").count() >= 2, "bars of results, and curves"


def test_runs_are_below_their_sweep(recorded: Recorded, address: str, page: Any) -> None:
    open_page(page, address, f"#/experiments/{recorded.store.experiment}/runs")
    page.get_by_role("link", name="Results and charts of every trial").wait_for()
    page.get_by_text("pages", exact=True).first.wait_for()
    assert page.get_by_text(TITLE).count() == 0, "folded up"
    page.locator(".ag-row button").first.click()
    page.get_by_text(TITLE.partition(" · student")[0]).first.wait_for()


def test_a_trials_page_tells_its_story(recorded: Recorded, address: str, page: Any) -> None:
    store, teacher = recorded.store, run_of(recorded.store, "teacher")
    open_page(page, address, f"#/experiments/{store.experiment}/runs/{run_of(store, 'ot')}")
    page.get_by_text("1 × ce + 1 × transport (solver sinkhorn)").wait_for(state="attached")
    page.get_by_text("which was best on validation images").wait_for(state="attached")
    assert page.locator(f"a[href*='/runs/{teacher}']").first.inner_text() == "resnet8, seed 0"
    parents = page.locator(f"a[href*='/runs/{sweep_of(store)}']", has_text="pages")
    parents.nth(1).wait_for(state="attached")  # MLflow's link to the sweep, and the note's
    page.get_by_text(MODEL).first.wait_for()
    page.get_by_text("digits (").first.wait_for()
    page.get_by_role("tab", name="System metrics").click()
    page.get_by_text("system_memory_usage_megabytes").first.wait_for()


def test_artifacts_can_be_looked_at(recorded: Recorded, address: str, page: Any) -> None:
    store = recorded.store
    place = f"#/experiments/{store.experiment}/runs/{run_of(store, 'ot')}/artifacts"
    for picture in ("confusion.png", "transport-embedding.png", "learning-curves.svg"):
        open_page(page, address, f"{place}/{picture}")
        page.wait_for_function("[...document.images].some(image => image.naturalWidth > 400)")
    open_page(page, address, f"{place}/per-class.csv")
    page.get_by_text("mistaken most for").first.wait_for()
    assert page.get_by_text("mistaken most for").first.is_visible()


def test_the_registry_has_a_champion(recorded: Recorded, address: str, page: Any) -> None:
    champion = recorded.store.client.get_model_version_by_alias(MODEL, CHAMPION)
    open_page(page, address, f"#/models/{MODEL}/versions/{champion.version}")
    page.get_by_text(CHAMPION).first.wait_for()
    page.get_by_text("accuracy on validation images, which training does not see").first.wait_for()
    page.get_by_text("with the weights of the last epoch").first.wait_for()
    assert page.get_by_text(CHAMPION).first.is_visible()


def test_the_champion_predicts(recorded: Recorded, surroundings: dict[str, str], tmp_path: Path) -> None:
    champion = recorded.store.client.get_model_version_by_alias(MODEL, CHAMPION)
    (output,) = recorded.store.client.get_run(champion.run_id).outputs.model_outputs
    model = recorded.store.client.get_logged_model(output.model_id)
    example = Path(urlparse(model.artifact_location).path, "serving_input_example.json")
    answer = tmp_path / "logits.json"
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", f"models:/{MODEL}@{CHAMPION}"]
    files = ["-i", str(example), "-o", str(answer), "-t", "json", "--env-manager", "local"]
    there = f"{Path(sys.executable).parent}{os.pathsep}{surroundings.get('PATH', '')}"  # it calls `python`
    environment = {**surroundings, "PATH": there, "MLFLOW_TRACKING_URI": recorded.store.uri}
    ended = subprocess.run(
        [*command, *files], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    logits = json.loads(answer.read_text(encoding="utf-8"))["predictions"]
    np.testing.assert_allclose(logits, expected(recorded.layout, champion.tags, example), rtol=1e-4, atol=1e-5)


def expected(layout: Layout, tags: dict[str, str], example: Path) -> np.ndarray[Any, Any]:
    """The logits of the trial's own weights for MLflow's example, by torch alone."""
    folder, card = layout.trial(tags[names.TAG_KEY]), Data(name="digits").card
    weights = folder.best if tags["otkd.weights"] == "best" else folder.last
    network = create("resnet8", classes=card.classes, channels=card.channels, seed=0).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    images = torch.tensor(json.loads(example.read_text(encoding="utf-8"))["inputs"])
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean, card.std))
    with torch.no_grad():
        return network((images / 255 - mean) / std).logits.numpy()
