"""Which settings matter: the share of what configurations differ by that each explains, alone and in pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import inference, stats
from otkd.report.anova import Anova, anova
from otkd.report.grids import Grid, grids
from otkd.report.table import Table, grouped, slug
from otkd.report.tables.differences import p_value

TITLE = "Importance of settings"
ORDER = 22

REST, SEEDS = "three and more together", "seeds alone"


class Found(NamedTuple):
    """One method on one pair."""

    grid: Grid
    anova: Anova | None
    """None where it cannot be said."""
    why: str
    """Why it cannot be said."""


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """A table per method of which two settings or more vary."""
    by_method: dict[str, list[Found]] = {}
    for grid in grids(frame, info):
        by_method.setdefault(grid.method, []).append(explained(grid))
    return [_table(method, found) for method, found in by_method.items()]


def explained(grid: Grid) -> Found:
    """By the seeds that every combination finished, so that all means are over the same ones."""
    finished = grid.trials[grid.trials["status"] == "finished"].dropna(subset=[grid.metric.column])
    wide = finished.pivot_table(index=list(grid.values), columns="seed", values=grid.metric.column)
    if len(wide) < grid.size:
        return Found(grid, None, f"{len(wide)} of {grid.size} combinations have a figure")
    whole = wide.dropna(axis="columns")
    if whole.empty:
        return Found(grid, None, "no seed finished in every combination")
    return Found(grid, anova(whole), "")


def _table(method: str, found: list[Found]) -> Table:
    data = pd.DataFrame([record for one in found for record in _records(one)])
    effects = list(dict.fromkeys(data["effect"]))
    columns: dict[tuple[str, str], list[str]] = {}
    for one in found:
        own = data[data["pair"] == one.grid.pair].set_index("effect").reindex(effects)
        columns[one.grid.pair, "share of variance, %"] = [stats.number(100 * share, 1) for share in own["share"]]
        if own["p_holm"].notna().any():
            columns[one.grid.pair, "p, Holm"] = ["" if math.isnan(p) else p_value(p) for p in own["p_holm"]]
    text = grouped(columns, effects, "setting")
    return Table(f"importance-{slug(method)}", f"{TITLE}: {method}", _caption(found), text, data)


def _records(found: Found) -> list[dict[str, object]]:
    grid, made = found.grid, found.anova
    head = {"pair": grid.pair, "method": grid.method, "metric": grid.metric.column}
    if made is None:
        nothing = {"share": math.nan, "p": math.nan, "p_holm": math.nan, "seeds": 0, "configurations": grid.size}
        return [{**head, "effect": grid.words[path], **nothing, "unknown": found.why} for path in grid.values]
    size = {"seeds": made.seeds, "configurations": made.configurations}
    corrected = inference.holm([effect.p for effect in made.effects])
    records: list[dict[str, object]] = []
    for effect, p_holm in zip(made.effects, corrected, strict=True):
        name = " × ".join(grid.words[path] for path in effect.axes) or REST
        records.append({**head, "effect": name, "share": effect.share, "p": effect.p, "p_holm": p_holm, **size})
    if not math.isnan(made.noise):
        records.append({**head, "effect": SEEDS, "share": made.noise, "p": math.nan, "p_holm": math.nan, **size})
    return [record | {"unknown": ""} for record in records]


def _caption(found: list[Found]) -> str:
    grid, known = found[0].grid, {one.grid.pair: one.anova for one in found if one.anova is not None}
    return " ".join(filter(None, [_known(grid, known) if known else "", _unknown(found), grid.budget]))


def _known(grid: Grid, known: dict[str, Anova]) -> str:
    sizes = "; ".join(f"{pair}: {one.configurations} combinations, n = {one.seeds}" for pair, one in known.items())
    alike = [pair for pair, one in known.items() if math.isnan(one.effects[0].share)]
    tested = (
        "Seeds alone: the share that the spread over seeds would give on average if no setting mattered; a share of "
        "that size says nothing. p: F test with seeds as blocks, Holm-corrected for the effects of a column."
        if any(one.seeds > 1 for one in known.values())
        else "One seed: how much of this is chance cannot be said."
    )
    parts = [
        f"Share of the variance of {grid.metric.by} (means over the n seeds that every combination finished) that a "
        "setting explains by itself, and two settings (×) beyond what each does by itself: functional ANOVA on the "
        f"full grid; the effects of a column add to 100 % ({sizes}).",
        "" if grid.held_out else "These are test figures: for reading, not for choosing.",
        f"All means are alike on {', '.join(alike)}." if alike else "",
        f"{tested} Shares hold for the values tried: over a wider range a setting matters more.",
    ]
    return " ".join(filter(None, parts))


def _unknown(found: list[Found]) -> str:
    """What cannot be said, and why."""
    lacking = [f"{one.grid.pair} ({one.why})" for one in found if one.anova is None]
    if not lacking:
        return ""
    return (
        f"Cannot be said of {', '.join(lacking)}: the shares are defined by a figure for every combination of the "
        "settings' values, and are not estimated from fewer."
    )
