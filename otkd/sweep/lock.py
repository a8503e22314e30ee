"""The lock that keeps two drivers off one `runs/`, and says who holds it.

The system holds it (flock) and releases it when the process ends, however it ends; the file tells others who that is.
Where the file system has no such locks, a second file that only one can create takes their place; when its owner has
died on this machine, the next driver removes it.

Who takes the lock begins unasked: a request to stop that lies there was meant for somebody else, and is gone before
anybody can read who is here now.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import shlex
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, NamedTuple

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""How a file system says that it has none."""
PATIENCE_S = 0.5
"""How long to try: who asks for the owner holds the lock for a moment; who takes it says a moment later who it is."""


class Owner(NamedTuple):
    """Who runs a sweep."""

    pid: int
    host: str
    user: str
    sweep: str
    since: str
    """ISO 8601, with its offset from UTC."""
    command: str

    def __str__(self) -> str:
        return (
            f"sweep {self.sweep}, started by {self.user} on {self.host} (process {self.pid}) at {self.since}: "
            f"{self.command}"
        )


class Lock:
    """The lock of one `runs/`, as held by this process until `release`."""

    def __init__(self, layout: Layout, file: IO[str], stand_in: Path | None) -> None:
        self._layout, self._file, self._stand_in = layout, file, stand_in

    def release(self) -> None:
        """Let others in."""
        with suppress(OSError):
            self._file.truncate(0)
        self._file.close()
        if self._stand_in is not None:
            self._stand_in.unlink(missing_ok=True)


def take(layout: Layout, sweep: str) -> Lock:
    """Keep other drivers off a `runs/`.

    Args:
        sweep: name of the sweep, for those who ask.

    Raises:
        OtkdError: another driver is there; says who, and the ways out.
        StorageError: the folder cannot be written.
    """
    stand_in = None
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        file = layout.lock.open("a+", encoding="utf-8")
        stand_in = None if _locked(file) else _stand_in(layout)
        layout.stop.unlink(missing_ok=True)
        me = json.dumps(_me(sweep)._asdict())
        if stand_in is not None:
            stand_in.write_text(me, encoding="utf-8")
        file.truncate(0)
        file.write(me)
        file.flush()
    except BlockingIOError:
        raise OtkdError(_occupied(layout, _read(layout.lock))) from None
    except OSError as error:
        if stand_in is not None:
            stand_in.unlink(missing_ok=True)
        raise StorageError(f"cannot write {layout.root}: {error.strerror}. Name another --runs.") from None
    return Lock(layout, file, stand_in)


def owner(layout: Layout) -> Owner | None:
    """Who runs a sweep in a `runs/`; None when nobody does."""
    try:
        with layout.lock.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _introduced(layout.lock) or Owner(0, "?", "?", "?", "?", "?")
    except FileNotFoundError:
        return None
    except OSError:
        there = _read(_place(layout))
        return there if there and not _dead(there) else None


def _locked(file: IO[str]) -> bool:
    """Take the system's lock; False where there is none.

    Raises:
        BlockingIOError: another process has it.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False


def _stand_in(layout: Layout) -> Path:
    """Create the file that stands for the lock, and says nothing yet.

    Raises:
        OtkdError: it is there, and its owner lives, or is on another machine.
    """
    path = _place(layout)
    there = _read(path)
    if there is not None and _dead(there):
        _bury(path, there)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        way_out = f" If that machine or process is gone for good, delete {path}."
        raise OtkdError(_occupied(layout, _read(path)) + way_out) from None
    return path


def _bury(path: Path, dead: Owner) -> None:
    """Remove what a dead owner has left; of several who come for that one may, and what a new owner writes stays."""
    claim = path.with_name(f"{path.name}.{dead.pid}")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return
    try:
        if _read(path) == dead:
            path.unlink()
    finally:
        claim.unlink()


def _introduced(path: Path) -> Owner | None:
    """Who holds the lock; while that is not said, the file is empty, or names the one before, who has died."""
    until = time.monotonic() + PATIENCE_S
    there = _read(path)
    while (there is None or _dead(there)) and time.monotonic() < until:
        time.sleep(0.02)
        there = _read(path)
    return there


def _place(layout: Layout) -> Path:
    return layout.lock.with_name(f"{layout.lock.name}.held")


def _me(sweep: str) -> Owner:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as containers have them
        user = str(os.getuid())
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return Owner(os.getpid(), socket.gethostname(), user, sweep, since, shlex.join(sys.argv))


def _read(path: Path) -> Owner | None:
    """Who wrote the file; None for a file that is missing, empty, or not one of these."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _dead(there: Owner) -> bool:
    """Whether its process has ended; unknown, hence False, on another machine."""
    if there.host != socket.gethostname():
        return False
    try:
        os.kill(there.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _occupied(layout: Layout, there: Owner | None) -> str:
    who = f": {there}" if there else ""
    return (
        f"another sweep is running in {layout.root}{who}. Wait for it, stop it (`otkd stop --runs {layout.root}`: "
        "it goes on from there later), or name another --runs."
    )
