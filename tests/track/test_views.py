"""The view is in the experiment, once, and names metrics and tags that runs have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otkd.core import names
from otkd.core.layout import Layout
from otkd.track.mlflow import MlflowSink
from otkd.track.notes import NOTE
from otkd.track.store import connect, search
from otkd.track.views import KIND, MODELS, TAG, keep_view, view, view_address


def test_the_view_is_found_by_its_address(layout: Layout) -> None:
    store = connect(layout)
    keep_view(store)
    tags = store.client.get_experiment(store.experiment).tags
    assert json.loads(tags[TAG]) == view()
    assert tags[KIND] == MODELS
    assert f"({view_address(store.experiment)})" in tags[NOTE], "linked on the experiment's own page"
    page, _, query = view_address(store.experiment).partition("?")
    assert page == f"#/experiments/{store.experiment}/runs"
    assert TAG.endswith("." + query.split("&")[0].removeprefix("viewStateShareKey="))


@pytest.mark.parametrize("tag", [KIND, NOTE])
def test_what_users_have_written_stays(layout: Layout, tag: str) -> None:
    store = connect(layout)
    store.client.set_experiment_tag(store.experiment, tag, "mine")
    keep_view(store)
    assert store.client.get_experiment(store.experiment).tags[tag] == "mine"


def test_columns_are_of_what_runs_have(layout: Layout, invented: Any, say: Any) -> None:
    sink, trial = MlflowSink(invented.info, layout), invented.students[0]
    sink.start(trial)
    sink.finish(say.result(trial.key))
    sink.close()
    (run,) = search(sink.store, f"tags.`{names.TAG_KEY}` = '{trial.key}'")
    columns = [column.partition(".") for column in view()["selectedColumns"]]
    tags = {name.strip("`") for kind, _, name in columns if kind == "tags"}
    assert tags <= set(run.data.tags)
    assert view()["orderByKey"] in view()["selectedColumns"]
    assert [*view()["columnWidths"]] == view()["columnOrder"], "MLflow gives no other columns a width"


def test_every_chart_lies_in_a_section() -> None:
    sections = {section["uuid"] for section in view()["compareRunSections"]}
    charts = view()["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)
