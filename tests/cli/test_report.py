"""`otkd report`, as a person calls it, on sweeps in a real store."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from otkd import cli
from otkd.core import names
from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.records import EpochRecord, Label, SweepInfo, TrialResult
from otkd.core.trial import Data, Model, Train, Trial
from otkd.report import pdf
from otkd.track.mlflow import MlflowSink

PAIR = "small ← big"
METHODS = {"student": {}, "kd": {"kd": {"weight": 0.9}}, "ot": {"transport": {"weight": 10.0}}}
BASE = {"student": 60.0, "kd": 62.0, "ot": 61.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Sweeps in one folder: `one`, `two` (five epochs, no `ot`), `lost` (nothing finished), and others' runs."""
    runs = tmp_path_factory.mktemp("store") / "runs"
    runs.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        _record(runs, "lost", 7, ["kd"], status="failed")
        _record(runs, "two", 5, ["student", "kd"])
        _record(runs, "one", 3, list(METHODS))
        client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("otkd").experiment_id
        client.log_metric(client.create_run(experiment, run_name="somebody's").info.run_id, "test/last/top1", 99.0)
        client.create_run(experiment, tags={"otkd.key": "", "otkd.kind": "student"})
    mlflow.set_tracking_uri(None)
    return runs


def _record(runs: Path, name: str, epochs: int, methods: list[str], status: str = "finished") -> None:
    trials, labels = [], []
    for method in methods:
        for seed in range(2):
            objective = {"ce": {"weight": 1.0}, **METHODS[method]}
            train = Train(epochs=epochs, batch_size=13)
            trial = Trial(
                data=Data(name="toy"), student=Model(name="small"), objective=objective, train=train, seed=seed
            )
            trials.append((trial, method))
            labels.append(
                Label(
                    key=trial.key, role="student", method=method, pair=PAIR, student="small", teacher="big", seed=seed
                )
            )
    info = SweepInfo(
        name=name,
        key=f"{name:0<16}",
        question="",
        profile="",
        yaml=f"name: {name}\n",
        dataset="toy",
        labels=tuple(labels),
    )
    sink = MlflowSink(info, Layout(runs))
    for trial, method in trials:
        sink.start(trial)
        figure = BASE[method] + trial.seed + epochs / 10
        metrics = {"val/top1": figure, "train/loss": 1.0}
        told = EpochRecord(key=trial.key, epoch=1, epochs=epochs, metrics=metrics, time=1e9)
        final = (
            {names.test("last", "top1"): figure, names.test("last", "loss"): 1 / figure} if status == "finished" else {}
        )
        sink.epoch(told)
        sink.finish(
            TrialResult(key=trial.key, status=status, metrics=final, epochs=(told,), started=1e9, ended=1e9 + 9)
        )
    sink.close()


@pytest.fixture
def otkd(store, tmp_path, monkeypatch):
    """Run `otkd report`, written to a folder of the test's own; errors are raised."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setattr(pdf, "browser", lambda: None)

    def call(*words: str) -> Result:
        result = CliRunner().invoke(cli.app, ["report", *words, "--runs", str(store), "--to", str(tmp_path)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    yield call
    mlflow.set_tracking_uri(None)


def test_the_last_sweep_by_default_and_how_to_get_a_pdf(otkd, tmp_path):
    said = otkd("--only", "accuracy").stdout
    assert f"report: {tmp_path / 'one/report.html'}" in said
    assert "no report.pdf: it is printed by Chromium or Chrome" in said
    assert "apt-get install chromium" in said
    assert f"one: {PAIR}" in said
    assert (tmp_path / "one/tables/accuracy.parquet").exists()


def test_a_report_that_is_there_is_shown(otkd, tmp_path):
    made, again = (otkd("two", "--only", "accuracy", "--format", "html").stdout for _ in range(2))
    assert "Nothing is new since this report was made." not in made
    assert "Nothing is new since this report was made." in again
    assert "Nothing is new" not in otkd("two", "--only", "cost", "--format", "html").stdout
    assert made.replace("\n", "") == again.replace("Nothing is new since this report was made.", "").replace("\n", "")


def test_formats_only_metric_and_baseline(otkd, tmp_path):
    said = otkd("two", "--format", "csv", "--only", "accuracy", "--metric", "loss", "--baseline", "kd").stdout
    assert {path.name for path in tmp_path.rglob("*.*")} == {"trials.csv", "accuracy.csv", "summary.json"}
    assert "Δ to kd, paired" in said
    assert "test loss, last epoch" in said
    assert "report.pdf" not in said
    data = pd.read_csv(tmp_path / "two/tables/accuracy.csv")
    assert data.loc[data["method"] == "kd", "mean"].item() == pytest.approx((1 / 62.5 + 1 / 63.5) / 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["onne"], r"no sweep 'onne'; there is one, two, lost\. Did you mean 'one'\?"),
        (["--format", "pdf"], r"--format pdf: it is printed by Chromium .*apt-get install chromium"),
        (["--format", "latex"], r"no format 'latex'; there is html"),
        (["--only", "costs"], r"no table or figure 'costs'.*Did you mean 'cost'"),
        (["--metric", "topp1"], r"no metric 'topp1'.*Did you mean 'top1'"),
        (["--baseline", "kdd"], r"no method 'kdd'; there is student, kd, ot\. Did you mean 'kd'"),
        (["one", "two"], r"train.epochs is 3 in one and 5 in two.*--mixed-budgets"),
        (["one", "--diff"], r"--diff takes two sweeps, and 1 came"),
        (["one", "two", "--diff", "--format", "csv"], r"--diff does not go with --format"),
        (["one", "two", "--diff", "--mixed-budgets"], r"--diff does not go with --mixed-budgets"),
        (["one", "--every", "5"], r"--every says how often --watch looks: add --watch, or leave --every out"),
    ],
)
def test_what_is_refused(otkd, tmp_path, words, said):
    with pytest.raises(OtkdError, match=said):
        otkd(*words)
    assert not list(tmp_path.iterdir())


def test_two_sweeps_side_by_side(otkd, tmp_path):
    said = otkd("one", "two", "--mixed-budgets", "--only", "accuracy", "--format", "md").stdout
    for method in ("kd [one]", "kd [two]", "ot"):
        assert method in said
    text = (tmp_path / "one+two/report.md").read_text()
    assert "Mixed budgets: train.epochs is 3 in one and 5 in two." in text


def test_diff(otkd, tmp_path):
    said = otkd("one", "two", "--diff").stdout
    assert f"only in one: ot on {PAIR}" in said
    assert "train.epochs" in said
    data = pd.read_csv(tmp_path / "one~two/diff.csv").set_index("method")
    assert data.loc["kd", "mean"] == pytest.approx(0.2)
    assert data.loc["kd", "how"] == "by seed"
    assert "+name: two" in (tmp_path / "one~two/diff.md").read_text()


def test_a_diff_that_cannot_be_written_names_the_way_out(otkd, tmp_path):
    (tmp_path / "one~two").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*diff\.csv: .*--to FOLDER writes elsewhere"):
        otkd("one", "two", "--diff")


def test_a_sweep_of_which_nothing_finished(otkd, tmp_path):
    said = otkd("lost", "--format", "html", "--format", "csv", "--only", "failures", "--only", "accuracy").stdout
    assert "failed ×2" in said
    page = (tmp_path / "lost/report.html").read_text()
    assert "0 of 2 student trials finished (2 failed)" in page
    trials = pd.read_csv(tmp_path / "lost/trials.csv")
    assert trials["status"].tolist() == ["failed"] * 2, "others' runs in the experiment are no trials"


def test_an_empty_experiment(otkd, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    with pytest.raises(OtkdError, match=r"no experiment 'another'|no sweep is recorded"):
        otkd()


def test_watching_a_sweep_that_is_over_writes_once(otkd, tmp_path):
    lines = otkd("two", "--watch", "--format", "html", "--only", "accuracy").stdout.splitlines()
    assert len(lines) == 2
    assert "All 4 student trials finished." in lines[0]
    assert str(tmp_path / "two") in lines[0]
    assert lines[1].endswith("the sweep is over.")


def test_a_reports_tables_are_tables_for_mlflow(store, tmp_path, monkeypatch):
    from otkd.report.render import write_report
    from otkd.track import reader

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = reader.read_sweep(Layout(store), "two")
    sink = MlflowSink(record.info, Layout(store))
    written = write_report(Layout(store), "two", to=tmp_path)
    sink.attach_report(written.folder, written.markdown)
    sink.close()
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    experiment = client.get_run(record.run_id).info.experiment_id
    loaded = client.load_table(experiment, "report/tables/accuracy.json", run_ids=[record.run_id])
    mlflow.set_tracking_uri(None)
    expected = pd.read_csv(written.folder / "tables/accuracy.csv").fillna({"not_counted": ""})
    pd.testing.assert_frame_equal(loaded, expected, check_dtype=False, rtol=1e-12)
