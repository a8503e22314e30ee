"""Learning curves as SVG: accuracy and loss by epoch, on training and validation images.

Written by hand, for the one writer's thread draws one for every trial of a sweep: this takes a millisecond, and the
same from matplotlib over a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from otkd.core import names
from otkd.core.records import EpochRecord

PANELS = (
    ("top-1 %", ((names.TRAIN_TOP1, "training"), (names.VAL_TOP1, "validation"))),
    ("loss", ((names.TRAIN_LOSS, "training"), (names.VAL_LOSS, "validation"))),
)
COLOURS, GREY = ("#0072b2", "#d55e00"), "#333"
WIDTH, HEIGHT = 380, 280
"""Of one panel, in pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 44, 40
"""Margins between a panel and its axes."""
INTERVALS, DOTTED = 5, 40
"""The most intervals of the values written beside an axis; the most epochs whose points are marked."""

Points = list[tuple[float, float]]


class Line(NamedTuple):
    """One metric."""

    label: str
    colour: str
    points: Points


class Axis(NamedTuple):
    """A range of values on a range of pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, whole: bool = False) -> list[float]:
        """Round values to be written beside the axis, or whole ones."""
        locator = MaxNLocator(INTERVALS, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1)
        return [value for value in locator.tick_values(self.low, self.high) if self.low <= value <= self.high]


def curves(epochs: Sequence[EpochRecord], title: str) -> str | None:
    """The figure, or None where no epoch of the training proper has any of its metrics."""
    main = sorted((record for record in epochs if record.stage == "train"), key=lambda record: record.epoch)
    panels = [(name, found) for name, metrics in PANELS if (found := _lines(main, metrics))]
    if not panels:
        return None
    width = WIDTH * len(panels)
    style = 'font-family="sans-serif" font-size="11"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" {style}>']
    parts += [f'<rect width="{width}" height="{HEIGHT}" fill="white"/>', _text(10, 16, title, "start", GREY)]
    for place, (name, lines) in enumerate(panels):
        parts += _panel(place * WIDTH, name, lines)
    return "\n".join([*parts, "</svg>"])


def _lines(records: Sequence[EpochRecord], metrics: Sequence[tuple[str, str]]) -> list[Line]:
    """The metrics that there are, each with its colour whichever others there are."""
    found = [
        Line(label, colour, _points(records, metric)) for (metric, label), colour in zip(metrics, COLOURS, strict=True)
    ]
    return [line for line in found if line.points]


def _points(records: Sequence[EpochRecord], metric: str) -> Points:
    """(epoch, value) of what is finite."""
    values = [(float(record.epoch), record.metrics.get(metric, math.nan)) for record in records]
    return [(epoch, value) for epoch, value in values if math.isfinite(value)]


def _panel(offset: float, name: str, lines: list[Line]) -> Iterator[str]:
    x = _axis([epoch for line in lines for epoch, _ in line.points], offset + LEFT, offset + WIDTH - RIGHT)
    y = _axis([value for line in lines for _, value in line.points], HEIGHT - BOTTOM, TOP)
    yield _text(x.start, TOP - 8, name, "start", GREY)
    yield _text((x.start + x.end) / 2, HEIGHT - 8, "epoch", "middle", GREY)
    for value in y.ticks():
        yield f'<path d="M{x.start:.1f} {y.at(value):.1f}H{x.end:.1f}" stroke="#ddd"/>'
        yield _text(x.start - 6, y.at(value) + 4, f"{value:.4g}", "end", GREY)
    for epoch in x.ticks(whole=True):
        yield _text(x.at(epoch), y.start + 16, f"{epoch:g}", "middle", GREY)
    for place, line in enumerate(reversed(lines)):
        yield _text(x.end - 70 * place, TOP - 8, line.label, "end", line.colour)
        yield from _drawn(line, x, y)


def _drawn(line: Line, x: Axis, y: Axis) -> Iterator[str]:
    """The line, and where there are few epochs its points: of a single one nothing else is seen."""
    places = [(x.at(epoch), y.at(value)) for epoch, value in line.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    yield f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8"/>'
    if len(places) <= DOTTED:
        yield from (f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{line.colour}"/>' for a, b in places)


def _axis(values: list[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    if low == high:  # one epoch, or a flat line
        low, high = low - 0.5, high + 0.5
    return Axis(low, high, start, end)


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
