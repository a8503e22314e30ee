"""What figures say of their points: each lies where it is drawn, and names method, figure, spread and n."""

from __future__ import annotations

import html
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from figure_sweeps import HOSTILE, hostile
from PIL import Image
from report_sweeps import OFFSETS, Sweep, full_sweep, histories

from otkd.core import names, plugins
from otkd.report import frame, render, style
from otkd.report.files import NONE
from otkd.report.options import checked

RED = "#FF0000"


def drawn_at(png: bytes) -> tuple[float, float]:
    """Where the red pixels of an image are, as shares of its width and height."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    rows, columns = np.nonzero(red)
    return (columns.mean() + 0.5) / pixels.shape[1], (rows.mean() + 0.5) / pixels.shape[0]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize(("x", "y"), [(0.03, 7.0), (40.0, -2.5), (3.0, 0.0)])
def test_a_mark_lies_where_its_point_is_drawn(x, y, scale):
    def figure(*_):
        drawing, panels = style.canvas(2, 3, 3.1, 2.3)
        axes = panels[1, 1]
        axes.set(xscale=scale, xlim=(0.01, 50), ylim=(-3, 8))
        axes.plot([x], [y], ".", color=RED, markersize=4, clip_on=False)
        style.tidy(axes, "a title\nof two lines", "x", "y")
        style.mark(axes, x, y, "here")
        return drawing

    module = SimpleNamespace(TITLE="t", figure=figure)
    picture = render._picture(module, "t", None, None, None, NONE)
    (spot,) = picture.spots
    left, top = drawn_at(picture.png)
    assert spot.text == "here"
    assert (spot.left, spot.top) == (pytest.approx(left, abs=0.003), pytest.approx(top, abs=0.003))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kd", "kd"),
        ("ot (weight=10)", "ot (weight=10)"),
        ("ot (weight=10, cost=cosine)", "ot\n(weight=10, cost=cosine)"),
        ("a" * 50, "a" * 39 + "…"),
        ("$x$", r"\$x\$"),
    ],
)
def test_labels_of_axes_stay_short(text, shown):
    assert style.tick(text) == shown


def test_a_mark_outside_of_the_figure_is_left_out():
    drawing, panels = style.canvas(1, 1, 3, 2)
    panels[0, 0].set(xlim=(0, 1), ylim=(0, 1))
    style.mark(panels[0, 0], 9.0, 0.5, "far away")
    style.mark(panels[0, 0], 0.5, 0.5, "within")
    drawing.canvas.draw()
    assert [spot.text for spot in style.spots(drawing)] == ["within"]


@pytest.fixture(scope="module")
def spots():
    record = full_sweep().record()
    epochs = frame.epochs(record, histories(record))
    trials = frame.trials(record, epochs)

    def of(name: str) -> list[str]:
        module = plugins.load("plots", name)
        picture = render._picture(module, name, trials, epochs, record.info, NONE)
        return [spot.text for spot in picture.spots]

    return of


def kd(shift: int = 0) -> np.ndarray:
    return 74.5 - shift + 1.4 * np.array(OFFSETS)


def test_accuracy_names_mean_spread_n_and_seeds(spots):
    told = spots("accuracy")
    values = kd()
    figures = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    seeds = ", ".join(f"{seed}: {value:.2f}" for seed, value in enumerate(values))
    assert f"kd: {figures} %, n = 3, by seed {seeds}" in told
    assert "ot: 74.80 %, n = 1, by seed 0: 74.80; diverged ×1, missing ×1" in told
    assert len([text for text in told if text.startswith("teacher: 75.61 %, n = 1")]) == 2


def test_differences_name_their_interval(spots):
    delta = kd() - (73.0 + 2.4 * np.array(OFFSETS))
    half = 4.302652729749464 * delta.std(ddof=1) / np.sqrt(3)  # Student's t, 97.5 %, two degrees of freedom
    low, high = (f"{bound:+.2f}".replace("-", "−") for bound in (delta.mean() - half, delta.mean() + half))
    (told,) = [text for text in spots("differences")[:3] if text.startswith("kd less student")]
    assert f"{delta.mean():+.2f} ± {delta.std(ddof=1):.2f} points, n = 3, 95 % [{low}, {high}]" in told


def test_curves_name_the_last_point_of_each(spots):
    told = spots("curves")
    for method, n in (("student", 3), ("kd", 3), ("ot+kd", 3), ("ot", 2)):
        last = [text for text in told if text.startswith(f"{method}, epoch 8:")]
        assert len(last) == 4, "two pairs, two metrics"
        assert f"n = {n} (" in last[0]
    assert any(text.startswith("kd, epoch 2:") for text in told)


def test_cost_names_both_figures(spots):
    values = kd()
    told = f"kd: {values.mean():.2f} ± {values.std(ddof=1):.2f} %, n = 3; 14.30 ± 0.30 s per epoch, n = 3"
    assert any(text.startswith(told) for text in spots("cost"))


def test_what_users_wrote_stays_words_on_the_page(tmp_path):
    record = hostile().record()
    page = render.build(record, frame.epochs(record, histories(record)), tmp_path).html.read_text()
    labels = [html.unescape(text) for text in re.findall(r'<i class="spot[^>]*? aria-label="([^"]*)"', page)]
    assert any(label.startswith(f"{HOSTILE} (") for label in labels)
    assert page.count("<script") == 1


def test_marks_and_labels_have_the_unit_and_digits_of_what_is_compared():
    sweep = full_sweep()
    for row in sweep.rows:
        row.metrics[names.test("last", "kl")] = 0.1 + 0.01 * row.label.seed + 0.001 * len(row.label.method)
        row.metrics[names.test("last", "loss")] = 0.5 + 0.01 * row.label.seed
    record = sweep.record()
    for metric, unit, label in (
        ("kl", " nats", "difference of test divergence from the teacher, nats"),
        ("loss", "", "difference of test loss"),
    ):
        trials = checked(metric=metric, baseline="kd").applied(frame.trials(record))
        texts, axes = {}, {}
        for name in ("accuracy", "differences", "cost"):
            drawing = plugins.load("plots", name).figure(trials, frame.epochs(record, lambda _: {}), record.info)
            drawing.canvas.draw()
            texts[name], axes[name] = [spot.text for spot in style.spots(drawing)], drawing.axes[0]
        mean = "0.1120" if unit else "0.5100"
        assert any(
            text.startswith(f"kd: {mean} ± 0.0100{unit}, n = 3, by seed 0: {float(mean) - 0.01:.4f}, 1:")
            for text in texts["accuracy"]
        )
        assert any(text.startswith(f"kd: {mean} ± 0.0100{unit}, n = 3; 14.30") for text in texts["cost"])
        delta = "+0.0050" if unit else "0.0000"
        told = f"student less kd: {delta} ± 0.0000{unit}, n = 3, "
        assert any(text.startswith(told) and f"by seed 0: {delta}, 1: {delta}" in text for text in texts["differences"])
        assert axes["differences"].get_xlabel() == label
        assert f"dotted: kd {mean}" in axes["accuracy"].get_title(loc="left"), "the baseline that was chosen"
    titles = [plugins.load("plots", name).TITLE for name in ("accuracy", "cost")]
    assert not any("ccuracy" in title for title in titles), "whatever the figure is"


def test_long_names_leave_panels_their_room():
    sweep = Sweep()
    for index in range(14):
        for seed in range(2):
            sweep.student(f"{'long' * 20}-{index}", 70.0 + index + seed, seed, ("s" * 40, "t" * 40), terms=("ce", "x"))
    trials = frame.trials(sweep.record())
    drawing = plugins.load("plots", "cost").figure(trials, frame.epochs(sweep.record(), lambda _: {}), None)
    drawing.canvas.draw()
    (axes,) = drawing.axes
    assert axes.get_window_extent().height > 2.5 * drawing.dpi, "the figure grows with its legend"
    (legend,) = drawing.legends
    assert [len(text.get_text()) for text in legend.get_texts()] == [12, *[60] * 14]
    lines = axes.get_title(loc="left").split("\n")
    assert "".join(lines) == f"{'s' * 40} ←{'t' * 40}"
    assert axes.get_tightbbox().x1 <= drawing.bbox.x1
