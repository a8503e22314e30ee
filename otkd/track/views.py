"""The view of a sweep that MLflow's pages open with: the columns and charts that matter come first.

MLflow keeps a view that people share in a tag of the experiment, and opens it by an address that names it; the
experiment's description links to it. What stands in the tag is the state of its page as JSON; the names in it are those
of MLflow 3.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from otkd.core import names
from otkd.track.notes import NOTE, TRAINING
from otkd.track.store import Store

VIEW = "otkd"
TAG = f"mlflow.sharedViewState.{VIEW}"
TEST, VAL = names.test("last", "top1"), names.VAL_TOP1
FIXED = {"attributes.`Run Name`": 330, "runDateAndNestInfo": 140}
"""Columns that MLflow always has first, and their width in pixels: the run's name, which is long, and its age."""
COLUMNS = {
    "metrics": {TEST: 120, names.BEST_VAL_TOP1: 120, names.WALL_S: 110},
    "tags": {names.TAG_METHOD: 120, names.TAG_SEED: 100, names.TAG_STATUS: 110, names.TAG_PAIR: 220},
}
"""Those behind them, and their width in pixels: results first, so that a narrow window has them."""
SECTION = "otkd"
KIND, MODELS = "mlflow.experimentKind", "custom_model_development"
"""Tag by which MLflow decides which of its pages an experiment needs, and its word for networks that are trained."""


def view_address(experiment: str) -> str:
    """The view's address, to be put behind that of MLflow's pages: `http://127.0.0.1:5000/` + it."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{TRAINING}"


@lru_cache(maxsize=64)
def keep_view(store: Store) -> None:
    """Write the view into the experiment, once for each store and process; its kind and description if it has none."""
    known = store.client.get_experiment(store.experiment).tags
    link = f"[Results and charts of every trial]({view_address(store.experiment)})"
    wanted = {KIND: MODELS, NOTE: link} | known | {TAG: json.dumps(view())}
    for tag, value in wanted.items() - known.items():
        store.client.set_experiment_tag(store.experiment, tag, value)


def view() -> dict[str, Any]:
    """The state of MLflow's page.

    Runs are in the order of their methods. In that of their time, MLflow would put them below their sweep, folded up,
    and charts draw nothing that is folded up.
    """
    widths = {f"{kind}.`{name}`": width for kind, chosen in COLUMNS.items() for name, width in chosen.items()}
    return {
        "searchFilter": "",
        "orderByKey": f"tags.`{names.TAG_METHOD}`",
        "orderByAsc": True,
        "selectedColumns": [*widths],
        "columnOrder": [*FIXED, *widths],
        "columnWidths": FIXED | widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts(),
        "compareRunSections": [_section()],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def charts() -> list[dict[str, Any]]:
    """Test accuracy of every run as bars, validation accuracy by epoch as lines, and training seconds."""
    return [
        _card("BAR", TEST, runsCountToCompare=50),
        _card("LINE", VAL, xAxisKey="step", lineSmoothness=0, useGlobalXaxisKey=False, useGlobalLineSmoothing=False),
        _card("BAR", names.WALL_S, runsCountToCompare=50),
    ]


def _card(kind: str, metric: str, **options: Any) -> dict[str, Any]:
    known = {"type": kind, "uuid": f"otkd-{kind.lower()}-{metric}", "metricSectionId": SECTION, "metricKey": metric}
    return {**known, "deleted": False, "isGenerated": False, **options}


def _section() -> dict[str, Any]:
    state = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": SECTION, "name": "What counts", "columns": 2, **state}
