"""What happens to what is written: the disk full, checkpoints torn, the tracking server gone."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import pytest
from harness import HERE, Reference, Sweep, check, served

from otkd.core.layout import TrialDir

MIB = 2**20


class Shortage(Protocol):
    """A way to have no space."""

    def __call__(self, sweep: Sweep) -> None: ...


def fill(sweep: Sweep) -> None:
    """Take every byte of the disk under `runs/`."""
    with (sweep.layout.root / "filler").open("wb", buffering=0) as file:
        while taken(file):
            pass


def taken(file: IO[bytes]) -> bool:
    """Whether there was room for more."""
    try:
        return bool(file.write(bytes(MIB)))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise


def ration(sweep: Sweep) -> None:
    """Let no file of the driver, which trains, grow beyond a few KiB."""
    resource.prlimit(sweep.driver.pid, resource.RLIMIT_FSIZE, (8 * 1024, resource.RLIM_INFINITY))


def free(sweep: Sweep) -> None:
    """Space is there again; a ration has ended with its processes."""
    (sweep.layout.root / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, mib: int = 256) -> Iterator[None]:
    """A disk of its own at `folder`.

    Raises:
        PermissionError: this user may not mount.
    """
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", folder], capture_output=True)
    if mounted.returncode:
        raise PermissionError(mounted.stderr.decode())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def may_mount(folder: Path) -> bool:
    try:
        with small_disk(folder, 1):
            return True
    except (PermissionError, FileNotFoundError):
        return False


@pytest.fixture(params=["disk", "ration"])
def shortage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shortage]:
    """A real disk that is full where this user may mount one; and everywhere a limit, which stops writes alike."""
    if request.param == "disk" and may_mount(tmp_path / "runs"):
        with small_disk(tmp_path / "runs"):
            yield fill
    else:
        yield ration


def test_the_disk_is_full(begin: Callable[..., Sweep], expected: Reference, shortage: Shortage) -> None:
    sweep = begin(HERE).start().until_epochs(12)
    shortage(sweep)
    assert sweep.wait() == 1, sweep.output
    assert "Free some space or name another --runs" in sweep.output
    assert "Traceback" not in sweep.output
    free(sweep)
    sweep.finish()
    check(sweep, expected)


def test_checkpoints_are_torn(begin: Callable[..., Sweep], expected: Reference) -> None:
    """First the newest to a half, then both to nothing."""
    sweep = begin(HERE)
    crash(sweep, after=1)
    for folder in under_way(sweep):
        os.truncate(folder.checkpoint, folder.checkpoint.stat().st_size // 2)
    crash(sweep, after=12)
    assert "cannot be read" in sweep.output
    assert "going on from the one before" in sweep.output
    for folder in under_way(sweep):
        os.truncate(folder.checkpoint, 0)
        os.truncate(folder.previous, 0)
    assert "this trial begins anew" in sweep.finish()
    check(sweep, expected)


def crash(sweep: Sweep, after: int) -> None:
    """Start it and bring everything down when, after so many epochs, a trial has two checkpoints."""

    def is_caught() -> bool:
        os.kill(sweep.driver.pid, signal.SIGSTOP)
        if not under_way(sweep):
            os.kill(sweep.driver.pid, signal.SIGCONT)
            return False
        return True

    sweep.start().until_epochs(after)
    sweep.wait_until(is_caught)
    sweep.crash()


def under_way(sweep: Sweep) -> list[TrialDir]:
    """Trials with a checkpoint and the one before it."""
    folders = [TrialDir(path) for path in sweep.layout.trials.glob("*")]
    return [folder for folder in folders if folder.checkpoint.exists() and folder.previous.exists()]


def test_the_tracking_server_is_killed_and_comes_back(
    begin: Callable[..., Sweep], expected: Reference, database: Path, tmp_path: Path
) -> None:
    with served(tmp_path, database) as server:
        sweep = begin(HERE, variables={"MLFLOW_TRACKING_URI": server.uri}).start().until_epochs(12)
        server.kill()
        sweep.until_epochs(sweep.epochs + 5)  # training goes on
        server.start()
        assert sweep.wait() == 0, sweep.output
        assert "the tracking store does not answer; training goes on" in sweep.output
        check(sweep, expected)
