"""What happens to the driver: killed, started twice, told to stop."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from harness import HERE, Reference, Sweep, below, check, otkd, runs, wait_gone

KILLS = (3, 16)
"""Epochs of all trials after which the driver is killed: in the teacher's training, and in that of students."""


def test_the_driver_is_killed_twice(begin: Callable[..., Sweep], expected: Reference) -> None:
    """The same command comes at once after each, while workers of the last driver may still be ending."""
    sweep = begin()
    for moment in KILLS:
        sweep.start().until_epochs(moment)
        sweep.kill()
    sweep.expect_unfinished()
    sweep.finish()
    check(sweep, expected)
    assert "nothing to do" in sweep.finish(HERE)


def test_a_second_driver_is_refused_and_the_first_goes_on(
    begin: Callable[..., Sweep], expected: Reference, tmp_path: Path
) -> None:
    sweep = begin(HERE).start().until_epochs(1)
    status, said = otkd(tmp_path, "sweep", sweep.file, "--runs", sweep.layout.root)
    assert status == 1
    for owner in (str(sweep.driver.pid), socket.gethostname(), sweep.name):
        assert owner in said
    assert sweep.wait() == 0, sweep.output
    check(sweep, expected)


def twice(sweep: Sweep) -> None:
    sweep.ctrl_c()
    sweep.wait_until(sweep.layout.stop.exists)
    sweep.ctrl_c()


def from_a_second_terminal(sweep: Sweep) -> None:
    status, said = otkd(sweep.file.parent, "stop", "--runs", sweep.layout.root)
    assert status == 0, said


STOPS = ((Sweep.ctrl_c, True, 3), (from_a_second_terminal, True, 12), (twice, False, 22))
"""How a sweep is told to stop, whether its trials save, and after how many epochs."""


def test_a_sweep_told_to_stop_goes_on_later(begin: Callable[..., Sweep], expected: Reference) -> None:
    """By Ctrl-C, by `otkd stop`, by Ctrl-C twice, one after the other."""
    sweep = begin(HERE)
    for stop, saves, moment in STOPS:
        sweep.start().until_epochs(moment)
        family = set(below(sweep.driver.pid))
        stop(sweep)
        assert sweep.wait() == 130, sweep.output
        assert "The same command goes on from here" in sweep.output
        assert "Traceback" not in sweep.output
        wait_gone(family)
        assert "RUNNING" not in {run.info.status for run in runs(sweep)}
        if saves:
            begun, ended = ({event["key"] for event in sweep.journal(kind)} for kind in ("start", "finish"))
            assert all(sweep.layout.trial(key).checkpoint.exists() for key in begun - ended)
    sweep.finish()
    check(sweep, expected)
