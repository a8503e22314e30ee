"""Errors that a person can act on: what came, what is allowed, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class OtkdError(Exception):
    """An error whose message is meant for the user; the command line prints it without a traceback."""


class DataError(OtkdError):
    """A data set is missing, damaged or not what its name says."""


class CheckpointError(OtkdError):
    """A checkpoint or weights file cannot be used."""


class StorageError(OtkdError):
    """The disk refused a write (full, read-only, no permission)."""


class TrackingError(OtkdError):
    """The tracking store cannot be reached or refuses."""


class TrialError(OtkdError):
    """A trial could not be trained."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration."""

    path: str
    """Dotted path of the setting, e.g. `methods.ot.transport.layer`."""
    message: str
    """What came and what is allowed."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(OtkdError):
    """Everything that is wrong with one configuration, reported together.

    Args:
        source: the file (or command) that the configuration came from.
        problems: all of them, in the order of the file.
    """

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest of `allowed`, or nothing when none is near."""
    near = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
