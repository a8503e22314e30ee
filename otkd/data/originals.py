"""The files of a published data set: found in one of the forms that it is handed around in, or downloaded."""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from otkd.core.datasets import Request
from otkd.core.errors import DataError
from otkd.core.locks import locked
from otkd.data.source import Arrays, RawSplits

log = logging.getLogger(__name__)

TIMEOUT = 30
"""Seconds without an answer after which a download has failed."""
ARCHIVES = (".tar.gz", ".zip")


def no_misfit(file: Path) -> str:
    """For layouts whose names tell enough."""
    return ""


class Layout(NamedTuple):
    """One form in which a data set is handed around."""

    folders: tuple[str, ...]
    """Where its files may lie, below the data folder or the data set's own folder in it; "" is that very folder."""
    train: tuple[str, ...]
    """Patterns of the training files; each is matched by one file at least, or by a folder if it ends with a slash."""
    test: tuple[str, ...]
    """The same for the test files."""
    read: Callable[[list[Path]], Arrays]
    """Reads one split from all that its patterns match, in the patterns' order, by name within a pattern."""
    about: str
    """Whose form this is, for messages: `as in …`."""
    misfit: Callable[[Path], str] = no_misfit
    """Why the first training file is one of another data set; nothing where it is not."""


class Item(NamedTuple):
    """A file to download."""

    url: str
    md5: str
    gives: str
    """What it becomes: a file of that name, or the folder of that name in the archive."""


class Origin(NamedTuple):
    """Where a data set comes from."""

    name: str
    """As sweep files call it."""
    layouts: tuple[Layout, ...]
    """What is looked for in each folder, in this order."""
    items: Callable[[], list[Item]]
    """What to download; a function, because it is torchvision that knows most addresses, and takes long to import."""
    megabytes: int
    """Size of the download."""
    advice: str = ""
    """What helps, besides, where files are missing."""


Place = tuple[Path, Layout]
"""A folder, and the form in which a data set may lie in it."""


class Found(NamedTuple):
    """The files of both splits."""

    layout: Layout
    train: list[Path]
    test: list[Path]


def sources(request: Request, origin: Origin) -> list[Path]:
    """What `read` would read; nothing when it would download first.

    Raises:
        DataError: the data folder has a part of the files.
    """
    found = _find(request, origin)
    return list(dict.fromkeys([*found.train, *found.test])) if found else []


def read(request: Request, origin: Origin) -> RawSplits:
    """Every image, from the first layout that is there, else from a download.

    Raises:
        DataError: files are damaged or missing, or there are none and the download fails; names every way to get them.
    """
    found = _find(request, origin) or _download(request, origin)
    return RawSplits(found.layout.read(found.train), found.layout.read(found.test))


def _find(request: Request, origin: Origin) -> Found | None:
    """The user's files, or ours of an earlier download."""
    return _find_in_data_dir(request.data_dir, origin) or _find_downloaded(request, origin)


def _find_in_data_dir(data_dir: Path | None, origin: Origin) -> Found | None:
    """`data_dir` may be the folder of data sets or, one or two levels deeper, that of this one."""
    if data_dir is None:
        return None
    places = _places([data_dir / origin.name, data_dir], origin)
    places += [(data_dir, layout) for layout in origin.layouts if data_dir.name in layout.folders]
    found = _first_whole(places)
    if found is None:
        for folder, layout in places:
            _refuse_a_part(folder, layout, origin)
    return found


def _find_downloaded(request: Request, origin: Origin) -> Found | None:
    return _first_whole(_places([request.downloads / origin.name, request.downloads], origin))


def _places(bases: list[Path], origin: Origin) -> list[Place]:
    return [(base / folder, layout) for base in bases for layout in origin.layouts for folder in layout.folders]


def _first_whole(places: list[Place]) -> Found | None:
    return next(filter(None, (_whole(*place) for place in places)), None)


def _whole(folder: Path, layout: Layout) -> Found | None:
    train, test = ([_matches(folder, pattern) for pattern in split] for split in (layout.train, layout.test))
    if not all(train) or not all(test) or layout.misfit(train[0][0]):
        return None
    return Found(layout, list(chain(*train)), list(chain(*test)))


def _matches(folder: Path, pattern: str) -> list[Path]:
    wanted = Path.is_dir if pattern.endswith("/") else Path.is_file
    try:
        return sorted(path for path in folder.glob(pattern.rstrip("/")) if wanted(path))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read ({error.strerror or error}). Check its permissions, or name another data folder "
            "(--data-dir folder)."
        ) from error


def _misfit(folder: Path, layout: Layout) -> str:
    """The file that tells that another data set lies there, and why; else nothing."""
    first = [file for pattern in layout.train[:1] for file in _matches(folder, pattern)][:1]
    return next((f"{file} {why}" for file in first if (why := layout.misfit(file))), "")


def _others(data_dir: Path | None, origin: Origin) -> str:
    """Files of other data sets that lie where those of this one might."""
    places = [] if data_dir is None else _places([data_dir], origin)
    found = filter(None, (_misfit(*place) for place in places))
    return "".join(f"; {strange}" for strange in found)


def _refuse_a_part(folder: Path, layout: Layout, origin: Origin) -> None:
    strange = _misfit(folder, layout)
    if strange and origin.name in (folder.name, folder.parent.name):
        raise DataError(f"{origin.name}: {strange}. Put its own files there, or name another data folder.")
    if strange:
        return
    patterns = list(dict.fromkeys([*layout.train, *layout.test]))
    missing = [pattern for pattern in patterns if not _matches(folder, pattern)]
    there = [pattern for pattern in patterns if pattern not in missing]
    if there:
        raise DataError(
            f"{origin.name}: {folder} has {_listed(there)} but no {_listed(missing)}; all are needed. Add what is "
            f"missing{origin.advice}, or name another data folder (--data-dir folder)."
        )


def _download(request: Request, origin: Origin) -> Found:
    """Fetch what is missing into our folder, each item whole or not at all."""
    target = request.downloads / origin.name
    log.warning(
        "%s: nothing under %s; downloading %s MB", origin.name, request.data_dir or "OTKD_DATA_DIR", origin.megabytes
    )
    try:
        with _partial(request, origin) as partial, _network_timeout(TIMEOUT):
            if _find_downloaded(request, origin) is None:  # another process may have been faster
                for item in origin.items():
                    _fetch(item, partial, target)
    except Exception as error:  # no network, a proxy's page, a full disk: the ways out are the same
        raise DataError(_ways_out(request, origin, error)) from error
    found = _find_downloaded(request, origin)
    if found is None:
        raise DataError(f"{origin.name}: the download in {target} lacks files. Remove that folder and try again.")
    return found


def _fetch(item: Item, partial: Path, target: Path) -> None:
    from torchvision.datasets import utils

    if (target / item.gives).is_file():
        return
    log.info("downloading %s", item.url)
    if item.url.endswith(ARCHIVES):
        utils.download_and_extract_archive(item.url, partial, md5=item.md5, remove_finished=True)
        shutil.rmtree(target / item.gives, ignore_errors=True)
    else:
        utils.download_url(item.url, partial, item.gives, item.md5)
    target.mkdir(parents=True, exist_ok=True)
    (partial / item.gives).replace(target / item.gives)


@contextmanager
def _partial(request: Request, origin: Origin) -> Iterator[Path]:
    """A folder for what is not whole yet, for one process at a time."""
    folder = request.downloads / f".{origin.name}.partial"
    with locked(request.downloads / f".{origin.name}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _ways_out(request: Request, origin: Origin, error: Exception) -> str:
    looked = f"under {request.data_dir}" if request.data_dir else "(no data folder was named)"
    looked += _others(request.data_dir, origin)
    ways = ", or\n".join(f"  - {_described(layout, origin)}" for layout in origin.layouts)
    return (
        f"{origin.name}: no images {looked}, and downloading them failed ({error}). Either name a data folder "
        f"(--data-dir folder, DATA=folder for make, or OTKD_DATA_DIR=folder) that has\n{ways},\n"
        f"or run where the download works{origin.advice}, or try `make demo`, which needs no data."
    )


def _described(layout: Layout, origin: Origin) -> str:
    patterns = list(dict.fromkeys([*layout.train, *layout.test]))
    return f"in {layout.folders[0] or origin.name}: {_listed(patterns)}, {layout.about}"


def _listed(patterns: Sequence[str]) -> str:
    *most, last = patterns
    return f"{', '.join(most)} and {last}" if most else last
