"""What planning knows of data sets, by name and options. A name is a plug-in's, or `<plug-in>/<what it is to read>`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from otkd.core import plugins
from otkd.core.cards import DataCard
from otkd.core.config import StrictModel
from otkd.core.errors import OtkdError, did_you_mean

if TYPE_CHECKING:
    from otkd.core.trial import Data


class DataOptions(StrictModel):
    """What every data set's `Options` derive from; a plug-in without any takes none."""


class Found(StrictModel):
    """What a survey of a user's own images found. Part of a trial's identity, which so depends on the images."""

    classes: NonNegativeInt = 0
    channels: PositiveInt = 3
    side: NonNegativeInt = 0
    """Height and width of every image where they are held in memory; 0 where they are scaled as they are read."""
    train: NonNegativeInt = 0
    """Training images."""
    test: NonNegativeInt = 0
    """Test images."""
    digest: str = ""
    """Of the names and sizes of all files, and of labels where files hold them."""


class SurveyedOptions(DataOptions):
    """Options of a plug-in that reads images of the user's own, `<plug-in>/<name>`: planning looks at them first."""

    found: Found = Found()
    """What the survey found; filled in by planning."""


class Request(NamedTuple):
    """Which images are wanted, and where they may lie."""

    name: str
    """The data set's whole name."""
    options: Any
    """The plug-in's `Options`, checked."""
    data_dir: Path | None
    """The user's data folder, or None."""
    cache_dir: Path
    """Our folder for what is made of the images."""

    @property
    def own(self) -> str:
        """What stands behind the plug-in's name: `pets` of `folder/pets`."""
        return self.name.partition("/")[2]

    @property
    def downloads(self) -> Path:
        """Our folder for downloads, shared by all data sets."""
        return self.cache_dir / "downloads"


def plugin_of(name: str) -> str:
    """The plug-in that reads a data set."""
    return name.partition("/")[0]


def surveyed(name: str) -> bool:
    """Whether a data set is the user's own, so that nothing is known of it before its files are looked at."""
    return issubclass(options_of(plugin_of(name)), SurveyedOptions)


def known(name: object) -> bool:
    """Whether there can be a data set of that name. Of several that mean one folder, one: a name is part of a key."""
    if not isinstance(name, str) or plugin_of(name) not in plugins.names("data"):
        return False
    return ("/" in name) == surveyed(name) and name == normpath(name)


def unknown(name: object) -> str:
    """The message for a name that no data set has."""
    if isinstance(name, str) and known(normpath(name)):
        return f"a data set's name has no empty part and no '.' or '..'. Got {name!r}. Write {normpath(name)!r}."
    listed = [f"{plugin}/<name>" if surveyed(plugin) else plugin for plugin in plugins.names("data")]
    there = f"there is no data set {name!r}; there is {', '.join(listed)} (`otkd data list`)."
    return there + did_you_mean(name, listed)


def configure(name: str, options: Mapping[str, Any]) -> DataOptions:
    """The options of a data set, checked, with every default filled in.

    Raises:
        OtkdError: there is no such data set.
        ValueError: an option is unknown or wrong (within pydantic it becomes problems under `options`).
    """
    if not known(name):
        raise OtkdError(unknown(name))
    kind = options_of(plugin_of(name))
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        raise plugins.Nested(tuple(plugins.problems_of(error, kind, "options"))) from None


def card(name: str, options: DataOptions | None = None) -> DataCard:
    """What is known of a data set with these options, by default with its own.

    Raises:
        OtkdError: there is no such data set; names the nearest.
    """
    made = options if options is not None else configure(name, {})
    head = plugins.head("data", plugin_of(name))
    by_options = getattr(head, "card", None)
    found: DataCard = head.CARD if by_options is None else by_options(made)
    return found


def request_for(data: Data, data_dir: Path | None, cache_dir: Path) -> Request:
    """What a data set's plug-in is asked for."""
    return Request(data.name, data.own_options, data_dir, cache_dir)


def survey(data: Data, data_dir: Path | None, cache_dir: Path) -> Data:
    """The same with what there is of images, where they are the user's own; any other data set is known already.

    Raises:
        DataError: there is no such folder, or it is not laid out as its plug-in expects.
    """
    if not surveyed(data.name):
        return data
    request = request_for(data, data_dir, cache_dir)
    found: Found = plugins.load("data", plugin_of(data.name)).survey(request)
    options = {**data.options, "found": found.model_dump(mode="json")}
    return type(data).model_validate({**data.model_dump(), "options": options})


@cache
def options_of(plugin: str) -> type[DataOptions]:
    kind: type[DataOptions] = getattr(plugins.head("data", plugin), "Options", DataOptions)
    return kind
