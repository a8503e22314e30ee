"""What differs between two sweeps, against scipy and by hand."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from report_sweeps import Sweep
from scipy import stats as scipy_stats

from otkd.core import names
from otkd.core.errors import OtkdError
from otkd.report import choice, diff
from otkd.sweep.spec import SweepSpec
from otkd.track.reader import SweepRecord

OLD, NEW = {"kd": (70.0, 70.4, 70.1), "student": (68.0, 68.3, 68.1)}, {"kd": (71.0, 71.2, 71.3, 71.1)}
NASTY = "<b>x|y</b> `a`"


def sweep(
    figures: dict[str, tuple[float, ...]], name: str, first_seed: int = 0, key: str = "a", **params
) -> SweepRecord:
    made = Sweep()
    for method, values in figures.items():
        for seed, value in enumerate(values, first_seed):
            made.student(method, value, seed, terms=("ce", method))
    record = made.record()
    rows = tuple(
        row._replace(
            label=row.label.model_copy(update={"key": key + row.label.key[1:]}), params={**row.params, **params}
        )
        for row in record.trials
    )
    info = record.info.model_copy(update={"name": name, "labels": tuple(row.label for row in rows)})
    return SweepRecord(info, f"run-{name}", 0.0, rows)


def compare(left: SweepRecord, right: SweepRecord, metric=choice.DEFAULT) -> diff.Diff:
    curves = pd.DataFrame({"key": [], "metric": [], "epoch": [], "value": []})
    return diff.compare((left, curves), (right, curves), metric)


def row(found: diff.Diff, method: str) -> pd.Series:
    return found.figures.data.set_index("method").loc[method]


def test_a_difference_paired_by_seed():
    found = compare(sweep(OLD, "a"), sweep(NEW, "b", key="b"))
    delta = np.subtract(NEW["kd"][:3], OLD["kd"])
    test = scipy_stats.ttest_1samp(delta, 0)
    kd = row(found, "kd")
    assert kd["how"] == "by seed"
    assert (kd["left_n"], kd["right_n"], kd["n"]) == (3, 4, 3)
    assert kd["mean"] == pytest.approx(delta.mean())
    assert kd["p"] == pytest.approx(test.pvalue)
    assert (kd["low"], kd["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.only == {"a": ["student on wrn_16_2 ← wrn_40_2"], "b": []}
    assert found.figures.frame.loc["kd", "compared"] == "by seed, n = 3"


def test_without_common_seeds_it_is_unpaired_and_says_so():
    found = compare(sweep(OLD, "a"), sweep(NEW, "b", first_seed=7, key="b"))
    test = scipy_stats.ttest_ind(NEW["kd"], OLD["kd"], equal_var=False)
    kd = row(found, "kd")
    assert kd["how"] == "unpaired"
    assert kd["p"] == pytest.approx(test.pvalue)
    assert kd["mean"] == pytest.approx(np.mean(NEW["kd"]) - np.mean(OLD["kd"]))
    assert "unpaired" in diff.markdown(found)


def test_one_seed_is_not_tested():
    found = compare(sweep({"kd": (70.0,)}, "a"), sweep({"kd": (71.0,)}, "b", key="b"))
    assert row(found, "kd")["mean"] == 1.0
    assert found.figures.frame.loc["kd", ["95 %, t", "p", "p, Holm"]].tolist() == ["—"] * 3


def test_the_same_trials_differ_in_nothing():
    found = compare(sweep(OLD, "a"), sweep(OLD, "b"))
    assert set(found.figures.data["how"]) == {"the same trials"}
    assert (found.settings, found.provenance, found.yaml) == (None, None, "")
    assert "were run with the same settings" in diff.markdown(found)


def test_a_method_that_lost_all_has_no_figure():
    right = sweep({"kd": (71.0, 72.0)}, "b", key="b")
    right = right._replace(trials=tuple(one._replace(status="failed") for one in right.trials))
    found = compare(sweep(OLD, "a"), right)
    assert row(found, "kd")["how"] == "no figure"
    assert "— (failed ×2)" in found.figures.frame.loc["kd"].tolist()


def test_settings_versions_and_files_that_differ():
    left = sweep(OLD, "a", **{"objective.kd.temperature": "4.0"})
    right = sweep(OLD, "b", key="b", **{"train.epochs": "100", "objective.kd.temperature": "2.0"})
    trials = tuple(
        one._replace(tags={**one.tags, names.TAG_PROVENANCE + "torch": "2.9"}, params={**one.params, "seed": "9"})
        for one in right.trials
    )
    right = right._replace(trials=trials, info=right.info.model_copy(update={"yaml": "name: demo\nx: ```\n"}))
    found = compare(left, right)
    settings = found.settings.frame
    assert settings.loc["train.epochs"].tolist() == ["240", "100", "all"]
    assert settings.loc["objective.kd.temperature"].tolist() == ["4.0", "2.0", "all"]
    assert "seed" not in settings.index
    assert found.provenance.frame.loc["torch"].tolist() == ["—", "2.9"]
    assert "commit" not in found.provenance.frame.index
    assert "-methods:" in found.yaml
    assert "````diff\n" in diff.markdown(found), "the fence is longer than any in the file"


def test_a_setting_of_one_method_names_it():
    right = sweep(OLD, "b", key="b")
    for one in right.trials:
        if one.label.method == "kd":
            one.params["objective.kd.weight"] = "7"
    assert compare(sweep(OLD, "a"), right).settings.frame.loc["objective.kd.weight"].tolist() == ["1.0", "7", "kd"]


def test_nothing_in_common():
    found = compare(sweep({"kd": (70.0,)}, "a"), sweep({"ot": (71.0,)}, "b", key="b"))
    assert found.figures is None
    assert "No method on a pair is in both." in diff.markdown(found)
    assert pd.read_csv(io.StringIO(diff.csv(found))).empty


def test_one_sweep_is_not_compared_with_itself():
    with pytest.raises(OtkdError, match="both names mean a"):
        compare(sweep(OLD, "a"), sweep(OLD, "a"))


def test_names_of_users_stay_words():
    found = compare(sweep({NASTY: (70.0, 71.0)}, "a"), sweep({NASTY: (70.5, 71.1)}, "b", key="b"))
    text = diff.markdown(found)
    assert "<b>" not in text
    line = next(line for line in text.splitlines() if "x\\|y" in line)
    assert line.replace("\\|", "").count("|") == text.splitlines()[4].count("|")


def test_another_metric_is_compared_by_its_own_column():
    left, right = sweep(OLD, "a"), sweep(OLD, "b", key="b")
    for record, loss in ((left, 1.0), (right, 0.75)):
        for one in record.trials:
            one.metrics[names.test("last", "loss")] = loss + one.label.seed
    found = compare(left, right, choice.named("loss"))
    assert row(found, "kd")["mean"] == pytest.approx(-0.25)
    assert "Test loss with the last epoch's weights; lower is better." in found.figures.caption


def test_holms_family_is_told():
    left = sweep({"kd": (70.0, 70.4, 70.1), "at": (71.0,), "ot": (71.0, 71.9, 71.5)}, "a")
    right = sweep({"kd": (70.3, 70.2, 70.9), "at": (71.0,), "ot": (71.2, 71.1, 71.9)}, "b", key="b")
    assert "Holm's is corrected for the 2 tests of a pair." in compare(left, right).figures.caption


def test_its_folder_is_that_of_no_sweep():
    found = compare(sweep(OLD, "a"), sweep(NEW, "b-quick", key="b"))
    assert found.folder == "a~b-quick"
    with pytest.raises(ValidationError) as refused:
        SweepSpec.model_validate({"name": found.folder})
    assert ("name",) in [problem["loc"] for problem in refused.value.errors()]
