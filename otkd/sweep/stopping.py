"""Stopping in order: a file in `runs/` asks all who train there to save and end; what asks for it, and who waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.sweep import lock

if TYPE_CHECKING:
    from rich.console import Console

SAID = "stopping: trials write a checkpoint and end; Ctrl-C again ends at once"
POLL_S = 0.2
"""Seconds between looks whether the driver has ended."""
LINE_EVERY_S = 10.0
"""Seconds between lines while waiting for it."""


def ask(layout: Layout) -> None:
    """Ask all who train in a `runs/` to save and end.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        layout.stop.touch()
    except OSError as error:
        raise StorageError(f"cannot write {layout.stop}: {error.strerror}.") from None


def asked(layout: Layout) -> bool:
    """Whether somebody has asked."""
    return layout.stop.exists()


def forget(layout: Layout) -> None:
    """Nobody has asked any more: the driver ends."""
    with suppress(OSError):
        layout.stop.unlink(missing_ok=True)


def end_in_order() -> None:
    """From here on SIGTERM is a Ctrl-C: it raises `KeyboardInterrupt`. One that is ignored stays so."""
    driver = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == driver:
            raise KeyboardInterrupt
        _end_fork(number)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def heeding(layout: Layout, note: Callable[[str], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C asks to stop, and so does SIGTERM; another Ctrl-C raises `KeyboardInterrupt`.

    A signal that is ignored (as Ctrl-C is in the background of a shell) stays so.

    Args:
        note: tells a person.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python knows no signals
        return
    handler = _Handler(layout, note)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in [number for number in numbers if before[number] is not signal.SIG_IGN]:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Handler:
    """What a signal does in the driver; processes that are forked from it inherit this, and are not the driver."""

    def __init__(self, layout: Layout, note: Callable[[str], None]) -> None:
        self._layout, self._note, self._driver = layout, note, os.getpid()
        self._interrupted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._driver:
            _end_fork(number)
            return
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        try:
            ask(self._layout)
        except StorageError:
            raise KeyboardInterrupt from None  # nothing can be saved either
        # not here: whatever prints just now may be interrupted in the middle
        threading.Thread(target=self._note, args=(SAID,), daemon=True).start()


def _end_fork(number: int) -> None:
    """The driver hears Ctrl-C as well, and ends its processes; SIGTERM is how it does so."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def stop_driver(layout: Layout, console: Console, wait: bool = True) -> None:
    """Ask whoever runs a sweep to stop, and wait until it has; where nobody does, say so.

    Raises:
        OtkdError: there is no such folder, or the file cannot be written.
    """
    if not layout.root.is_dir():
        raise OtkdError(f"there is no folder {layout.root}; --runs names another.")
    there = lock.owner(layout)
    if there is None:
        said = f"no sweep is running in {layout.root}; --runs names another folder."
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        return
    ask(layout)
    console.print(f"stopping {there}", highlight=False, markup=False, soft_wrap=True)
    if wait:
        _wait(layout, console, there)
        console.print("stopped; the same command goes on from here.", highlight=False)


def _wait(layout: Layout, console: Console, there: lock.Owner) -> None:
    begin = said = time.monotonic()
    with console.status("its trials write a checkpoint and end …"):
        while lock.owner(layout) == there:
            time.sleep(POLL_S)
            if not console.is_terminal and time.monotonic() - said >= LINE_EVERY_S:
                said = time.monotonic()
                console.print(f"waiting for it, {said - begin:.0f} s so far", highlight=False)
