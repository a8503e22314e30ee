"""Where a long command prints: its reader may leave, as in `otkd sweep … | head`, and the command goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

GONE = "otkd: nobody reads this output any more; the sweep goes on (`otkd status` shows it, `otkd stop` ends it)\n"


def lasting(stream: IO[str]) -> IO[str]:
    """A stream of text, with a file descriptor, that drops what is written once its reader has gone, and says so."""
    return cast(IO[str], _Lasting(stream))


class _Lasting:
    """What it does not know is asked of the stream."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a file's."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a file's."""
        with self._lasting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _drain(self._stream)
            _say_on_stderr()


def _say_on_stderr() -> None:
    try:
        sys.stderr.write(GONE)
        sys.stderr.flush()
    except BrokenPipeError:  # it was the same pipe
        _drain(sys.stderr)


def _drain(stream: IO[str]) -> None:
    """What is in its buffer, and all that comes, goes nowhere; Python would complain of it at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)
    with suppress(BrokenPipeError):
        stream.flush()
