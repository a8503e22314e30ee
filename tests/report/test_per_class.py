"""Gains and losses by class against counts made up here."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from report_sweeps import PAIRS, Sweep

from otkd.report import choice, frame
from otkd.report.tables import per_class

PAIR = "wrn_16_2 ← wrn_40_2"


class Kept:
    """Files by trial key, and the paths that were asked for."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts, self.asked = texts, []

    def text(self, key, path):
        self.asked.append((key, path))
        return self.texts.get(key)


def by_class(rights, names=None, images=50) -> str:
    """`per-class.csv` as the tracker writes it."""
    lines = [
        f'"{names[label] if names else label}",{100 * right / images:.2f},,0,{images},{right}'
        for label, right in enumerate(rights)
    ]
    return "\n".join(["class,top-1 %,mistaken most for,times,images,right", *lines]) + "\n"


def kept(sweep: Sweep, rights: dict[tuple[str, int], list[int]], names=None) -> Kept:
    keys = {(row.label.method, row.label.seed): row.label.key for row in sweep.rows}
    return Kept({keys[place]: by_class(counts, names) for place, counts in rights.items()})


def made(sweep: Sweep, files) -> list:
    record = sweep.record()
    return per_class.table(frame.trials(record), record.info, files)


@pytest.fixture
def sweep() -> Sweep:
    """Two seeds; `ot` diverged on seed 1."""
    sweep = Sweep()
    sweep.teacher("wrn_40_2")
    for seed in range(2):
        sweep.student("student", 70.0, seed)
        sweep.student("kd", 71.0, seed)
    sweep.student("ot", 72.0, 0)
    sweep.student("ot", seed=1, status="diverged")
    return sweep


COUNTS = {
    ("student", 0): [40, 30, 20, 25, 25, 25],
    ("student", 1): [42, 30, 20, 25, 25, 25],
    ("kd", 0): [44, 29, 20, 25, 26, 20],
    ("kd", 1): [43, 31, 20, 25, 29, 22],
    ("ot", 0): [40, 30, 20, 30, 25, 25],
    ("ot", 1): [0, 0, 0, 0, 0, 0],
}
NAMES = ["apple", "<script>", "cat_%", "dog", "null", "fox & co"]


def test_gains_and_losses_are_paired_by_seed(sweep):
    to_student, to_kd = made(sweep, kept(sweep, COUNTS, NAMES))
    # of 50 images one is 2 points. kd: apple +8, +2; null +2, +8; fox −10, −6; <script> −2, +2; two of six a direction
    assert to_student.frame.reset_index().to_numpy().tolist() == [
        ["kd", "apple", "+5.00 ± 4.24", "82.00", "87.00", "50"],
        ["kd", "null", "+5.00 ± 4.24", "50.00", "55.00", "50"],
        ["kd", "fox & co", "−8.00 ± 2.83", "50.00", "42.00", "50"],
        ["ot", "dog", "+10.00 (n = 1, no spread)", "50.00", "60.00", "50"],
    ]
    assert to_student.frame.columns[1] == "Δ points, n = 2 unless stated"
    assert list(to_kd.frame.index) == ["ot"] * 4, "ot's trial that diverged does not count, whatever it left"
    assert to_kd.frame["class"].tolist() == ["dog", "fox & co", "apple", "null"], "of equal ones the lower label"
    assert (to_student.name, to_kd.name) == ("per-class-to-student", "per-class-to-kd")


def test_the_baseline_that_a_reader_chose_is_the_only_one(sweep):
    record = sweep.record()
    trials = choice.choose(frame.trials(record), choice.DEFAULT.column, "ot")
    (table,) = per_class.table(trials, record.info, kept(sweep, COUNTS, NAMES))
    assert table.name == "per-class-to-ot"
    assert set(table.data["method"]) == {"student", "kd"}
    assert "less that of ot over the seeds" in table.caption
    assert table.frame.loc["student", "class"] == "dog"


def test_a_baseline_that_is_the_first_of_several_settings_is_said_to_be(sweep):
    for temperature in (2, 4):
        sweep.student("soft", 71.0, 0, terms=("ce", "kd"), axes={"kd.temperature": temperature})
    files = kept(sweep, COUNTS, NAMES)
    files.texts |= {row.label.key: by_class([25, 25, 25, 25, 25, 26]) for row in sweep.rows[-2:]}
    to_student, to_kd = made(sweep, files)
    assert to_kd.caption.endswith("The baseline kd is the first listed of 3 methods and settings with its terms.")
    assert "first listed" not in to_student.caption


def test_all_classes_are_in_the_data(sweep):
    to_student, _ = made(sweep, kept(sweep, COUNTS, NAMES))
    kd = to_student.data[to_student.data["method"] == "kd"].set_index("class")
    assert kd["label"].tolist() == list(range(6))
    assert kd.loc["<script>", ["mean", "n", "baseline_top1", "method_top1"]].tolist() == [0.0, 2, 60.0, 60.0]
    assert kd.loc["<script>", "std"] == pytest.approx(math.sqrt(8))
    assert (to_student.data["pair"] == PAIR).all()
    assert (to_student.data["baseline"] == "student").all()


def test_classes_of_one_name_stay_apart(sweep):
    to_student, _ = made(sweep, kept(sweep, COUNTS, ["crane"] * 6))
    assert (to_student.data["method"] == "kd").sum() == 6
    assert to_student.frame.loc["kd", "class"].tolist() == ["crane"] * 3


def test_no_more_than_five_gains_and_five_losses():
    sweep = Sweep()
    sweep.student("student", 70.0)
    sweep.student("kd", 70.0)
    student, kd = [25] * 17, [25 + label - 8 for label in range(17)]
    (table,) = made(sweep, kept(sweep, {("student", 0): student, ("kd", 0): kd}))
    assert table.frame["class"].tolist() == ["16", "15", "14", "13", "12", "0", "1", "2", "3", "4"]
    assert "no more than 5 of each" in table.caption
    assert "extremes of 17 classes" in table.caption


def test_one_seed_says_so(sweep):
    one = {place: counts for place, counts in COUNTS.items() if place[1] == 0}
    to_student, _ = made(sweep, kept(sweep, one))
    assert "One seed: no spread can be given, and no difference can be told from chance." in to_student.caption
    assert "may be chance" in made(sweep, kept(sweep, COUNTS))[0].caption


def test_what_has_nothing_to_compare_is_named(sweep):
    lacking = {("student", 1): COUNTS["student", 1], ("kd", 1): COUNTS["kd", 1], ("ot", 0): COUNTS["ot", 0]}
    (table,) = made(sweep, kept(sweep, lacking))
    assert set(table.frame.index) == {"kd"}
    assert "Without a row: ot (nothing to compare)." in table.caption
    alike = {("student", 0): [25] * 6, ("kd", 0): [25] * 6, ("ot", 0): [26] * 6}
    to_student, _ = made(sweep, kept(sweep, alike))
    assert "Without a row: kd (every class alike)." in to_student.caption


def test_a_class_without_images_has_no_difference():
    sweep = Sweep()
    for method in ("student", "kd"):
        sweep.student(method, 70.0)
    head, rows = "class,top-1 %,mistaken most for,times,images,right\n", "a,,,0,0,0\nb,50.00,,0,10,5\n"
    keys = [row.label.key for row in sweep.rows]
    (table,) = made(sweep, Kept({keys[0]: head + rows, keys[1]: head + rows.replace("50.00,,0,10,5", "70.00,,0,10,7")}))
    assert table.frame.reset_index().to_numpy().tolist() == [["kd", "b", "+20.00", "50.00", "70.00", "10"]]
    assert table.data["n"].tolist() == [0, 1]


def test_each_pair_has_a_table_and_only_finished_students_are_read(sweep):
    sweep.student("student", 70.0, pair=PAIRS[1])
    sweep.student("kd", 70.0, pair=PAIRS[1])
    files = kept(sweep, {})
    files.texts = {row.label.key: by_class([25, 25 + (row.label.method == "kd")]) for row in sweep.rows}
    found = made(sweep, files)
    assert [table.title for table in found] == [
        f"By class, to student, {PAIR}",
        f"By class, to kd, {PAIR}",
        "By class, to student, resnet8x4 ← resnet32x4",
    ]
    assert len({table.name for table in found}) == 3
    finished = {row.label.key for row in sweep.rows if row.label.role == "student" and row.status == "finished"}
    assert {key for key, _ in files.asked} == finished
    assert len(files.asked) == len(finished)


def test_nothing_without_files_or_without_a_baseline(sweep):
    record = sweep.record()
    assert per_class.table(frame.trials(record), record.info) == []
    alone = Sweep()
    alone.student("ot", 70.0)
    files = kept(alone, {("ot", 0): [1, 2]})
    assert made(alone, files) == []
    assert files.asked == []
    frame_of_two = pd.DataFrame({"mean": [1.0, -1.0]})
    assert per_class.extremes(frame_of_two)["mean"].tolist() == [1.0, -1.0]
