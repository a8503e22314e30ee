"""Two drivers cannot share one `runs/`, and the second hears who the first is."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.sweep import lock

HOLD = """
import sys, time
from otkd.core.layout import Layout
from otkd.sweep import lock
held = lock.take(Layout(sys.argv[1]), "theirs")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "runs")


@pytest.fixture(params=["locks", "no locks"])
def file_system(request, monkeypatch):
    """With and without locks of the system's own."""
    if request.param == "no locks":

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("file_system")
def test_the_second_is_refused_and_hears_who_is_there(layout):
    assert lock.owner(layout) is None
    held = lock.take(layout, "mine")
    with pytest.raises(OtkdError, match="another sweep is running in") as refusal:
        lock.take(layout, "another")
    there = lock.owner(layout)
    assert (there.sweep, there.pid) == ("mine", os.getpid())
    for part in (*map(str, there), f"otkd stop --runs {layout.root}", "name another --runs"):
        assert part in str(refusal.value)
    held.release()
    assert lock.owner(layout) is None
    lock.take(layout, "another").release()


@pytest.mark.parametrize("ending", ["kill", "terminate"])
def test_a_driver_that_dies_holds_nothing(layout, ending):
    driver = subprocess.Popen([sys.executable, "-c", HOLD, str(layout.root)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "held\n"
    there = lock.owner(layout)
    assert (there.pid, there.sweep) == (driver.pid, "theirs")
    assert there.command == "-c " + str(layout.root)
    getattr(driver, ending)()
    driver.wait()
    assert lock.owner(layout) is None
    lock.take(layout, "mine").release()


def test_who_asks_for_the_owner_keeps_nobody_out(layout):
    lock.take(layout, "before").release()
    over = threading.Event()

    def ask():
        while not over.is_set():
            lock.owner(layout)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(50):
            lock.take(layout, "mine").release()
    finally:
        over.set()
        for thread in asking:
            thread.join()
    assert lock.owner(layout) is None


def test_without_locks_a_dead_owner_is_removed_and_one_elsewhere_is_not(layout, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    held = lock.take(layout, "mine")
    place = layout.lock.with_name(".lock.held")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = {**json.loads(place.read_text()), "pid": dead.pid}
    held.release()
    assert not place.exists()
    place.write_text(json.dumps(owner))
    assert lock.owner(layout) is None
    lock.take(layout, "mine").release()
    place.write_text(json.dumps({**owner, "host": "elsewhere"}))
    assert lock.owner(layout).host == "elsewhere"
    with pytest.raises(OtkdError, match=r"gone for good, delete .*\.lock\.held"):
        lock.take(layout, "mine")


def test_of_two_who_find_a_dead_owner_one_takes_over(layout, monkeypatch):
    """The second has seen the dead one, too, and is slower."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    dead, taken = lock._dead, []

    def looked_at_by_both(there):
        verdict = dead(there)
        if not taken:
            taken.append(None)
            taken.append(lock.take(layout, "quick"))
        return verdict

    monkeypatch.setattr(fcntl, "flock", refuse)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    layout.root.mkdir()
    place = layout.lock.with_name(".lock.held")
    place.write_text(json.dumps(lock._me("before")._replace(pid=gone.pid)._asdict()))
    monkeypatch.setattr(lock, "_dead", looked_at_by_both)
    with pytest.raises(OtkdError, match=r"another sweep is running in .*: sweep quick"):
        lock.take(layout, "slow")
    assert lock.owner(layout).sweep == "quick"
    taken[1].release()
    assert [path.name for path in layout.root.iterdir()] == [".lock"]


@pytest.mark.usefixtures("file_system")
def test_a_request_to_stop_from_before_is_gone_once_the_owner_can_be_read(layout, monkeypatch):
    """So one that is meant for this owner, which `otkd stop` reads first, is never taken for an old one."""
    layout.root.mkdir()
    layout.stop.touch()
    seen, write = [], json.dumps
    monkeypatch.setattr(lock.json, "dumps", lambda *given: (seen.append(layout.stop.exists()), write(*given))[1])
    lock.take(layout, "mine").release()
    assert seen == [False]


def test_the_owner_is_who_holds_the_lock_not_who_died_with_it(layout):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    layout.root.mkdir()
    layout.lock.write_text(json.dumps(lock._me("before")._replace(pid=gone.pid)._asdict()))
    with layout.lock.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.1, lambda: layout.lock.write_text(json.dumps(lock._me("now")._asdict())))
        timer.start()
        assert lock.owner(layout).sweep == "now"
        timer.join()


def test_a_lock_that_says_nothing_still_holds(layout):
    layout.root.mkdir()
    with layout.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock.owner(layout).pid == 0
        with pytest.raises(OtkdError, match=r"another sweep is running in .*/runs\. Wait"):
            lock.take(layout, "mine")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Name another --runs"):
        lock.take(Layout(tmp_path / "file"), "mine")
