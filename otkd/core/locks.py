"""Locks between processes that share a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, alone or `shared` with other readers.

    Where there are no file locks (Windows, some network drives) or the folder may not be written, it goes on without.
    """
    with ExitStack() as stack:
        if fcntl is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                stream = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)  # whoever may read it may lock it
                stack.callback(os.close, stream)
                fcntl.flock(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
