"""Configurations of a study, each unlike the others: what is like one that was tried is drawn again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from otkd.core.errors import ConfigError
from otkd.core.trial import digest
from otkd.sweep.search import Candidate, Search, Study, drawn_again, most

Make = Callable[[Study, int, Mapping[str, Any]], Candidate]


class Drawing:
    """What has been taken of one study.

    Args:
        make: gives a configuration by its number and values; raises `ConfigError` where these do not go together.
    """

    def __init__(self, search: Search, study: Study, make: Make) -> None:
        self._search, self._study, self._make = search, study, make
        self._keys: set[str] = set()
        """The trials of those that were taken."""
        self._seen: set[str] = set()
        """Digests of values that are no longer to be had."""
        self._unsound: dict[str, ConfigError] = {}
        """Digests of values that do not go together → what is wrong."""

    def recall(self, candidate: Candidate) -> None:
        """This one was taken by an earlier session."""
        self._seen.add(digest(candidate.values))
        self._keys |= _keys(candidate)

    def take(self, number: int, values: Mapping[str, Any]) -> Candidate | None:
        """Configuration `number` of the study: these values, or random ones if they were taken; None: nothing is left.

        Raises:
            ConfigError: the values do not go together.
        """
        found = self._unlike(number, values)
        others = () if found is not None else drawn_again(self._search, self._study, number)
        for other in others:
            if len(self._seen) + len(self._unsound) >= most(self._study):
                return None
            with suppress(ConfigError):
                found = self._unlike(number, other)
            if found is not None:
                return found
        return found

    def _unlike(self, number: int, values: Mapping[str, Any]) -> Candidate | None:
        """A configuration, unless it is like one that was taken; ways to write the same settings have the same keys."""
        mark = digest(values)
        if mark in self._unsound:
            raise self._unsound[mark]
        if mark in self._seen:
            return None
        try:
            candidate = self._make(self._study, number, values)
        except ConfigError as error:
            self._unsound[mark] = error
            raise
        self._seen.add(mark)
        if _keys(candidate) & self._keys:
            return None
        self._keys |= _keys(candidate)
        return candidate


def _keys(candidate: Candidate) -> set[str]:
    return {planned.trial.key for planned in candidate.planned}
