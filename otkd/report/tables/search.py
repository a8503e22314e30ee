"""What a search tried: the configurations of each study, by the validation accuracy that they are chosen by."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from otkd.core.records import SweepInfo
from otkd.report import selection, stats
from otkd.report.frame import budget
from otkd.report.table import Table, slug

TITLE = "Search"
ORDER = 15


def table(frame: pd.DataFrame, info: SweepInfo) -> list[Table]:
    """A table per study; none where nothing was searched."""
    if not selection.searched(frame):
        return []
    studies = selection.configurations(frame).groupby(selection.STUDY, sort=False)
    return [
        _of_study(frame, found.sort_values("val", ascending=False, kind="stable"), pair, method)
        for (pair, method), found in studies
    ]


def _of_study(frame: pd.DataFrame, found: pd.DataFrame, pair: str, method: str) -> Table:
    rows = frame[(frame["stage"] == selection.SEARCH) & (frame["pair"] == pair) & (frame["method"] == method)]
    data = pd.DataFrame([_record(rows, *row) for row in found[["configuration", "won"]].itertuples(index=False)])
    summaries = [stats.Summary(*row) for row in data[["val_mean", "val_std", "n"]].itertuples(index=False)]
    expected, n = stats.header_n(summaries)
    text = {
        f"val top-1 %, best epoch, {n}": [stats.explain(summary, "", expected) for summary in summaries],
        "epochs": [stats.number(epochs, 0) for epochs in data["epochs"]],
        "status": list(data["status"]),
    }
    shown = pd.DataFrame(text, index=pd.Index(data["configuration"], name=method, dtype=object), dtype=object)
    bold = frozenset((row, 0) for row, won in enumerate(data["won"]) if won)
    name, title = f"search-{slug(f'{pair}-{method}')}", f"{TITLE}: {pair} · {method}"
    return Table(name, title, _caption(rows), shown, data.assign(pair=pair, method=method), bold)


def _record(rows: pd.DataFrame, configuration: str, won: bool) -> dict[str, object]:
    own = rows[rows["configuration"] == configuration]
    val = stats.summarise(own[selection.VAL])
    counts = Counter(own["status"])
    status = ", ".join(f"{word} ×{count}" if len(counts) > 1 else word for word, count in counts.items())
    return {
        "configuration": configuration or "as in the file",
        "val_mean": val.mean,
        "val_std": val.std,
        "n": val.n,
        "epochs": own[selection.EPOCHS].max(),
        "status": status,
        "won": won,
    }


def _caption(rows: pd.DataFrame) -> str:
    plain = rows.assign(role="student", stage="")
    return (
        "Mean ± sample standard deviation over n seeds of the best val top-1 on record; of what was stopped early, up "
        "to there. Epochs: the most that a seed has trained. Bold: the winner, which has the highest mean among those "
        "whose seeds were all trained to their end (or, where none were, among those that were stopped; of equal ones "
        "the first tried); its own figure reads high, as it "
        f"was chosen by it. Test accuracy plays no part in the search and is not shown. {budget(plain)}"
    )
