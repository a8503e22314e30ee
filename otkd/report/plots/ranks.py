"""Critical-difference diagram: average ranks over pairs, with a bar over methods that cannot be told apart."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from otkd.core.records import SweepInfo
from otkd.report import choice, style
from otkd.report.frame import budget
from otkd.report.tables.ranks import differ, means, ranked, testable

TITLE = "Critical differences"
ORDER = 38


def figure(frame: pd.DataFrame, epochs: pd.DataFrame, info: SweepInfo) -> Figure | None:
    """One diagram; None where there are too few pairs or methods for it, or none differ by Friedman's test."""
    figures = means(frame)
    found = ranked(frame, figures) if testable(figures) else None
    if found is None or not differ(found):
        return None
    from scikit_posthocs import critical_difference_diagram

    looks = style.looks(frame)
    drawing, panels = style.canvas(1, 1, 8.0, 1.2 + 0.25 * len(found.average))
    plain = {name: style.plain(str(name)) for name in found.average.index}
    critical_difference_diagram(
        found.average.rename(plain),
        found.p_nemenyi.rename(index=plain, columns=plain),
        ax=panels[0, 0],
        label_fmt_left="{label} ({rank:.2f})",
        label_fmt_right="({rank:.2f}) {label}",
        label_props={"fontsize": 9},
        color_palette={plain[name]: looks[str(name)].colour for name in found.average.index},
    )
    for name, rank in found.average.items():
        style.mark(panels[0, 0], rank, 0, f"{name}: average rank {rank:.2f} over {len(figures)} pairs")
    panels[0, 0].set_title(f"critical difference {found.critical:.2f}", fontsize=9, loc="right")
    return drawing


def caption(frame: pd.DataFrame, info: SweepInfo) -> str:
    """What the bars mean."""
    return (
        f"Average rank of mean {choice.metric(frame).by} over pairs, the best on the left. A bar joins methods "
        f"that Nemenyi's test cannot tell apart at 5 %. {budget(frame)}"
    )
