"""Charts in the report's colours, of figures that the report computed. Fields have names of ours; names are values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from dashboards import text
from dashboards.source import METRICS, Sweep
from otkd.report import style

HEIGHT = 300


def curves(sweep: Sweep, trials: pd.DataFrame, by: str, colours: Mapping[str, str], key: str) -> None:
    """Learning curves of `trials`, one chart a metric: mean of the trials of each `by`, band ± their spread."""
    long = sweep.curves(trials["key"]).merge(trials[["key", by]], on="key")
    if long.empty:
        text.small("No epoch of these is on record yet.")
        return
    _legend(colours, trials[by])
    metrics = [metric for metric in METRICS if (long["metric"] == metric).any()]
    for place, metric in zip(_cells(len(metrics)), metrics, strict=True):
        chart = _curve(averaged(long[long["metric"] == metric], by), METRICS[metric], colours)
        place.altair_chart(chart, width="stretch", key=f"{key}.{metric}")


def averaged(long: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean, spread and n of a metric by epoch and name; `low` and `high` bound the band."""
    finite = long[np.isfinite(long["value"])]
    groups = finite.groupby([by, "epoch"], sort=False, observed=True)["value"]
    found = groups.agg(["mean", "std", "count"]).reset_index()
    found.columns = pd.Index(["name", "epoch", "mean", "std", "n"])
    spread = found["std"].fillna(0)
    return found.assign(low=found["mean"] - spread, high=found["mean"] + spread)


def points(data: pd.DataFrame, x: str, y: str, colours: Mapping[str, str], key: str) -> None:
    """Means with their spread: columns `name`, `x_mean`, `x_std`, `y_mean`, `y_std`, `n`."""
    data = data.fillna({"x_std": 0.0, "y_std": 0.0})
    data = data.assign(
        x_low=data["x_mean"] - data["x_std"],
        x_high=data["x_mean"] + data["x_std"],
        y_low=data["y_mean"] - data["y_std"],
        y_high=data["y_mean"] + data["y_std"],
    )
    colour = _colour(colours, data["name"])
    zero, near = alt.Scale(zero=True), alt.Scale(zero=False, padding=12)
    _legend(colours, data["name"])
    base = alt.Chart(data)
    few = alt.Axis(tickCount=6)
    across = alt.X("x_mean", type="quantitative", title=x, scale=zero, axis=few)
    left = alt.X("x_low", type="quantitative", title=x, axis=few)
    up = alt.Y("y_mean", type="quantitative", title=y, scale=near)
    tips = [_tip("name", "method"), _tip("y_mean", y), _tip("y_std", "±"), _tip("x_mean", x), _tip("n", "n")]
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, color=colour, tooltip=tips)
    tall = base.mark_rule().encode(x=across, y=alt.Y("y_low", type="quantitative", title=y), y2="y_high", color=colour)
    wide = base.mark_rule().encode(x=left, x2="x_high", y=up, color=colour)
    st.altair_chart((tall + wide + marks).properties(height=HEIGHT + 60), width="stretch", key=key)


def settings(data: pd.DataFrame, x: str, y: str, key: str) -> None:
    """A figure against the values of a setting: columns `name`, `value` (text), `mean`, `std`, `n`, in their order."""
    spread = data["std"].fillna(0)
    data = data.assign(low=data["mean"] - spread, high=data["mean"] + spread)
    names = list(dict.fromkeys(data["name"]))
    colours = dict(zip(names, _palette(len(names)), strict=True))
    _legend(colours, names)
    colour = _colour(colours, names)
    order = list(dict.fromkeys(data["value"]))
    across = alt.X("value", type="nominal", sort=order, title=x, axis=alt.Axis(labelAngle=0))
    up = alt.Y("mean", type="quantitative", title=y, scale=alt.Scale(zero=False, padding=12))
    base = alt.Chart(data)
    tips = [_tip("name", "method"), _tip("value", x), _tip("mean", y), _tip("std", "±"), _tip("n", "n")]
    line = base.mark_line(point=alt.OverlayMarkDef(size=70)).encode(x=across, y=up, color=colour, tooltip=tips)
    bars = base.mark_rule().encode(x=across, y=alt.Y("low", type="quantitative", title=y), y2="high", color=colour)
    st.altair_chart((bars + line).properties(height=HEIGHT), width="stretch", key=key)


def matrix(values: np.ndarray, title: str, x: str, y: str, colour: str, top: float | None = None) -> None:
    """A matrix as a heat map, dark where it is 0."""
    drawing, ((axes,),) = style.canvas(1, 1, 6.0, 4.8)
    style.tidy(axes, title, x, y)
    axes.grid(False)
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top, interpolation="nearest", aspect="auto")
    drawing.colorbar(image, label=colour)
    st.pyplot(drawing, width=640)


def _curve(data: pd.DataFrame, words: str, colours: Mapping[str, str]) -> alt.LayerChart:
    colour = _colour(colours, data["name"])
    base = alt.Chart(data)
    across = alt.X("epoch", type="quantitative", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"))
    near = alt.Scale(zero=False)
    low = alt.Y("low", type="quantitative", title=words, scale=near)
    tips = [_tip("name", "method"), _tip("epoch", "epoch"), _tip("mean", words), _tip("std", "±"), _tip("n", "n")]
    band = base.mark_area(opacity=0.15).encode(x=across, y=low, y2="high", color=colour)
    up = alt.Y("mean", type="quantitative", title=words, scale=near)
    line = base.mark_line(point=len(data) <= 24 and {"size": 25}).encode(x=across, y=up, color=colour, tooltip=tips)
    return (band + line).properties(height=HEIGHT)


def _cells(count: int) -> list[st.delta_generator.DeltaGenerator]:
    """A place for each chart, two side by side."""
    rows = [st.columns(2) for _ in range((count + 1) // 2)]
    return [cell for row in rows for cell in row][:count]


def _colour(colours: Mapping[str, str], shown: Iterable[str]) -> alt.Color:
    present = set(shown)
    names = [name for name in colours if name in present]
    scale = alt.Scale(domain=names, range=[colours[name] for name in names])
    return alt.Color("name", type="nominal", scale=scale, legend=None)


def _legend(colours: Mapping[str, str], shown: Iterable[str]) -> None:
    """The names of what is drawn; none where it is one thing."""
    present = set(shown)
    if len(present) > 1:
        text.legend({name: colour for name, colour in colours.items() if name in present})


def _palette(count: int) -> list[str]:
    return [style.OKABE_ITO[index % len(style.OKABE_ITO)] for index in range(count)]


def _tip(field: str, words: str) -> alt.Tooltip:
    if field in ("name", "value"):
        return alt.Tooltip(field, type="nominal", title=words)
    return alt.Tooltip(field, type="quantitative", title=words, format="d" if field in ("epoch", "n") else ".3f")
