"""Records as tables in GitHub's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEGEND = """\
ms: median ± half the interquartile range of value and gradient, forward and backward.
@: achieved L1 marginal error, both sides added. ✗: missed the tolerance, or a wrong value; one call, not counted.
forward only: the fastest NumPy backend, which has no gradient: its value alone; not counted.
fastest peer / otkd: of those that give the gradient; above 1 otkd is the faster. its: of that peer.
value error: relative to the float64 solution. MiB: peak beyond what stood before.
floor: x yᵀ and its backward pass alone. at the floor: the ratio of a code that took no longer than that."""


@dataclass(frozen=True)
class Table:
    """A section's outcome: a title, rows of text by column, and what stands in the JSON file."""

    title: str
    rows: list[dict[str, str]]
    records: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """The table in GitHub's form, columns aligned."""
        columns = list(self.rows[0]) if self.rows else ["nothing to show"]
        lines = [columns, *([row[column] for column in columns] for row in self.rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n\n".join(filter(None, [f"## {self.title}", "\n".join(text), self.note]))


def plain(title: str, records: list[dict[str, Any]]) -> Table:
    """A table that shows its records as they are."""
    return Table(title, [{key: text(value) for key, value in record.items()} for record in records], records)


def row(cell: Mapping[str, Any]) -> dict[str, str]:
    """A comparison as a line of its table: of each family of peers its fastest."""
    ours, peers = cell["otkd"], [peer for peer in cell["peers"] if peer["backward"]]
    families = {peer["family"]: family(peers, peer["family"]) for peer in peers}
    best: Mapping[str, Any] = next((peer for peer in peers if peer["name"] == cell["fastest"]), {})
    epsilon = {} if cell["epsilon"] is None else {"ε": f"{cell['epsilon']:g}"}
    return {
        "problem": cell["problem"],
        **epsilon,
        "otkd ms": described(ours),
        **{f"{name} ms": text for name, text in families.items()},
        "forward only ms": forward(cell),
        "fastest peer / otkd": number(cell["peer_over_otkd"]),
        "value error, otkd": number(ours["value_error"], 1),
        "its": number(best.get("value_error"), 1),
        "MiB, otkd": number(ours["peak_mib"]),
        "its MiB": number(best.get("peak_mib")),
        "floor ms": number(cell["floor_ms"]),
        "otkd / floor": number(cell["otkd_over_floor"]),
    }


def family(peers: Sequence[Mapping[str, Any]], name: str) -> str:
    """The fastest of a family that arrived; else the fastest; else why there is none."""
    members = [peer for peer in peers if peer["family"] == name]
    timed = [peer for peer in members if peer["ms"] is not None]
    if not timed:
        return described(members[0])
    return described(min(timed, key=lambda peer: (not peer["reached"], peer["ms"])))


def forward(cell: Mapping[str, Any]) -> str:
    """The fastest of those that give no gradient, by its whole name."""
    found = next((peer for peer in cell["peers"] if peer["name"] == cell["forward_only"]), None)
    return "–" if found is None else described({**found, "label": found["name"]})


def described(code: Mapping[str, Any]) -> str:
    """Time ± spread (method) @ achieved marginal error, and marks."""
    if code["ms"] is None:
        return f"n/a: {code['note']}"
    label = ", ".join(filter(None, [code["label"], code["iters"] and f"{code['iters']} its"]))
    parts = [
        "" if code["reached"] else "✗",
        f"{number(code['ms'])}±{number(code['spread_ms'], 2)}",
        label and f"({label})",
        "" if code["marginal_error"] is None else f"@{number(code['marginal_error'], 1)}",
    ]
    return " ".join(filter(None, parts))


def number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.{digits}g}"


def text(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
