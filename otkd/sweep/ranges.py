"""What may be searched of one setting: an interval of numbers, or a choice of values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from otkd.core.config import StrictModel
from otkd.core.errors import did_you_mean
from otkd.core.trial import digest

DECIMALS = 3
"""A drawn number is rounded to so many decimals after the first digit of itself, or of the interval's width."""


class Interval(StrictModel):
    """The numbers from `low` to `high`, both included."""

    low: int | float
    high: int | float
    log: bool = False
    """Equal ratios are equally likely, in place of equal distances."""
    whole: bool = False
    """Whole numbers alone."""

    @property
    def ends(self) -> tuple[int | float, ...]:
        """The values at which planning checks a setting."""
        return self.fit(self.low), self.fit(self.high)

    def at(self, share: float) -> int | float:
        """The number below which `share` (0 to 1) of the interval lies, as `fit` rounds it."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        return self.fit(low * (high / low) ** share if self.log else low + share * (high - low))

    def fit(self, value: float) -> int | float:
        """The nearest number within that a person can copy: whole, or with no more digits than matter."""
        finest = min(abs(value) or math.inf, self.high - self.low)
        near = round(value) if self.whole else round(value, DECIMALS - math.floor(math.log10(finest)))
        kept = min(max(near, self.low), self.high)
        return int(kept) if self.whole else float(kept)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


class Choice(StrictModel):
    """One of the values listed."""

    values: tuple[Any, ...] = Field(strict=False)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values at which planning checks a setting: every one."""
        return self.values

    def at(self, share: float) -> Any:
        """The value below which `share` (0 to 1) of the list lies."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]

    def __str__(self) -> str:
        return f"of {list(self.values)}"

    def __hash__(self) -> int:  # a value may be a list or a mapping
        return hash(digest(self.values))


FORMS: dict[str, dict[str, bool]] = {
    "uniform": {},
    "loguniform": {"log": True},
    "int": {"whole": True},
    "logint": {"log": True, "whole": True},
}
"""How a file writes an interval → what is then set of `Interval`."""
CHOICE = "choice"


def _range(given: Any) -> Any:
    """`{loguniform: [0.1, 100]}` or `{choice: [embedding, 3]}` as an `Interval` or a `Choice`."""
    if isinstance(given, Interval | Choice):
        return given
    forms = [*FORMS, CHOICE]
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ValueError(f"a range is one of {', '.join(forms)} with its values, e.g. {{loguniform: [0.1, 100]}}.")
    [(form, values)] = given.items()
    if form not in forms:
        raise ValueError(f"there is no range {form!r}; there is {', '.join(forms)}.{did_you_mean(form, forms)}")
    return _choice(values) if form == CHOICE else _interval(form, values)


def _choice(values: Any) -> Choice:
    if not isinstance(values, list) or not values:
        raise ValueError("a choice is a list of one value or more.")
    if any(value in values[:index] for index, value in enumerate(values)):
        raise ValueError("a value stands twice.")
    return Choice(values=tuple(values))


def _interval(form: str, values: Any) -> Interval:
    flags = FORMS[form]
    whole, log = flags.get("whole", False), flags.get("log", False)
    if not isinstance(values, list) or len(values) != 2 or not all(_is_number(value, whole) for value in values):
        raise ValueError(f"{form} takes two {'whole ' if whole else ''}numbers, the lowest and the highest.")
    low, high = values
    if log and low <= 0:
        raise ValueError(f"{form}: 0 and below have no logarithm; begin above 0, or take {form.removeprefix('log')}.")
    if low >= high:
        raise ValueError(f"{form}: the lowest comes first and lies below the highest.")
    return Interval(low=low, high=high, **flags)


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)


def _schema() -> dict[str, Any]:
    """The JSON schema of a range."""
    values: dict[str, dict[str, Any]] = {}
    for form, flags in FORMS.items():
        number: dict[str, Any] = {"type": "integer" if flags.get("whole") else "number"}
        number |= {"exclusiveMinimum": 0} if flags.get("log") else {}
        values[form] = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    values[CHOICE] = {"type": "array", "minItems": 1}
    return {
        "type": "object",
        "properties": values,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }


Range = Annotated[Interval | Choice, BeforeValidator(_range), WithJsonSchema(_schema())]
