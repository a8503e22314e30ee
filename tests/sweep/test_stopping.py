"""Signals, the file that asks to stop, and who waits for it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient
from rich.console import Console

from otkd.core.errors import DataError, OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Data, Model, Train, Trial
from otkd.sweep import local, lock, stopping
from otkd.sweep.journal import read_session
from otkd.sweep.local import LocalRunner
from otkd.sweep.plan import make
from otkd.sweep.results import failure_of
from otkd.sweep.runner import Mailbox, WorkerLostError, fail, hopeless
from otkd.sweep.session import Options, Session
from otkd.sweep.spec import load
from otkd.train import Environment

DRIVER = """
import sys, time
from otkd.core.layout import Layout
from otkd.sweep import lock, stopping
layout = Layout(sys.argv[1])
held = lock.take(layout, "theirs")
print("held", flush=True)
while not stopping.asked(layout):
    time.sleep(0.02)
time.sleep(0.5)
stopping.forget(layout)
held.release()
"""


PLANNING = """
import os, signal, sys, time
from otkd.cli import main
from otkd.sweep import spec
spec.load = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(30))
sys.argv = ["otkd", "sweep", "any.yaml"]
main()
"""


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "runs").mkdir()
    return Layout(tmp_path / "runs")


@pytest.fixture
def notes():
    return []


@pytest.fixture(autouse=True)
def signals_as_a_terminal_has_them():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_ctrl_c_asks_once_and_ends_at_once_the_second_time(layout, notes):
    def interrupted():
        send(signal.SIGINT)
        assert stopping.asked(layout)
        send(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), stopping.heeding(layout, notes.append):
        interrupted()
    time.sleep(0.1)
    assert notes == [stopping.SAID]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_asks_as_often_as_it_comes_and_leaves_ctrl_c_its_turn(layout, notes):
    with stopping.heeding(layout, notes.append):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert stopping.asked(layout)
    stopping.forget(layout)
    assert not stopping.asked(layout)


def test_what_is_ignored_stays_ignored(layout, notes):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.heeding(layout, notes.append):
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert not stopping.asked(layout)


def test_processes_of_the_driver_leave_ctrl_c_to_it_and_die_of_sigterm(layout, notes):
    with stopping.heeding(layout, notes.append):
        child = os.fork()
        if not child:
            for _ in range(2):
                send(signal.SIGINT)
            send(signal.SIGTERM)
            os._exit(99)
        status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert not stopping.asked(layout)


def test_where_nothing_can_be_saved_ctrl_c_ends_at_once(layout, notes):
    with pytest.raises(KeyboardInterrupt), stopping.heeding(Layout(layout.root / "missing"), notes.append):
        send(signal.SIGINT)


def test_sigterm_outside_of_training_is_a_ctrl_c_in_the_driver_alone():
    stopping.end_in_order()
    child = os.fork()
    if not child:
        send(signal.SIGTERM)
        os._exit(99)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stopping.end_in_order()
    send(signal.SIGTERM)


def test_sigterm_while_a_command_plans():
    done = subprocess.run([sys.executable, "-c", PLANNING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")
    assert "otkd: stopped. The same command goes on from here." in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_before_the_first_trial_is_on_record(layout, sweep_file, monkeypatch):
    monkeypatch.setattr("otkd.sweep.session._runner", lambda *_: send(signal.SIGTERM))
    stopping.end_in_order()
    with pytest.raises(KeyboardInterrupt), Session(make(load(sweep_file())), layout, Console(quiet=True)) as session:
        session.train(Options(local=True))
    assert read_session(layout, "tiny").ended == "stopped"
    assert lock.owner(layout) is None


def test_outside_the_main_thread_nothing_is_installed(layout, notes):
    def inside():
        with stopping.heeding(layout, notes.append):
            notes.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert notes == [signal.default_int_handler]


@pytest.mark.parametrize("wait", [True, False])
def test_a_running_driver_is_asked_and_waited_for(layout, wait):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(layout.root)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "held\n"
    with (layout.root / "said").open("w") as file:
        stopping.stop_driver(layout, Console(file=file), wait)
        assert (driver.poll() is None) is not wait or driver.wait(timeout=5) == 0
    assert driver.wait(timeout=10) == 0
    said = (layout.root / "said").read_text()
    assert "stopping sweep theirs, started by" in said
    assert f"(process {driver.pid})" in said
    assert ("stopped; the same command goes on from here." in said) is wait


def test_where_nothing_runs_there_is_nothing_to_stop(layout, capsys):
    stopping.stop_driver(layout, Console(), wait=True)
    assert capsys.readouterr().out == f"no sweep is running in {layout.root}; --runs names another folder.\n"
    assert not stopping.asked(layout)
    with pytest.raises(OtkdError, match=r"there is no folder .*missing; --runs names another"):
        stopping.stop_driver(Layout(layout.root / "missing"), Console(), wait=True)


def test_a_stop_that_comes_as_soon_as_the_owner_can_be_read_is_heard(layout, sweep_file, monkeypatch):
    take = lock.take

    def taken_and_asked(*given):
        held = take(*given)
        stopping.ask(layout)
        return held

    monkeypatch.setattr(lock, "take", taken_and_asked)
    with Session(make(load(sweep_file())), layout, Console(quiet=True)):
        assert stopping.asked(layout)
    assert not stopping.asked(layout)


def test_a_session_that_cannot_begin_leaves_nothing_open(layout, sweep_file, monkeypatch):
    def refuse(_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(Session, "_begin", refuse)
    with pytest.raises(StorageError, match="the disk is full"):
        Session(make(load(sweep_file())), layout, Console(quiet=True)).__enter__()
    assert lock.owner(layout) is None
    client = MlflowClient(f"sqlite:///{layout.database.resolve()}")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [run.info.status for run in runs] == ["KILLED"]


DATA = Data(name="digits", limit=60)


def trial(seed):
    return Trial(data=DATA, student=Model(name="resnet8"), objective={"ce": {}}, train=Train(epochs=1), seed=seed)


@pytest.mark.parametrize("heed", [True, False])
def test_in_one_process_nothing_more_begins(layout, monkeypatch, heed):
    begun = []

    def fit(cohort, *_):
        begun.append(cohort)
        stopping.ask(layout)

    monkeypatch.setattr(local, "fit", fit)
    LocalRunner(Environment(layout, heed_stop=heed)).run([[trial(0)], [trial(1)]], 1, Mailbox())
    assert len(begun) == (1 if heed else 2)


def test_a_cohort_that_cannot_be_trained_has_failed_with_each_of_its_trials(layout, monkeypatch):
    def refuse(*_):
        raise DataError("the images are gone")

    monkeypatch.setattr(local, "fit", refuse)
    mailbox, trials = Mailbox(), [trial(0), trial(1)]
    LocalRunner(Environment(layout)).run([trials], 1, mailbox)
    told = [TrialResult.model_validate_json(text) for kind, text in mailbox.take() if kind == "finish"]
    assert [(result.key, result.status) for result in told] == [(own.key, "failed") for own in trials]
    assert {result.reason for result in told} == {"DataError: the images are gone"}
    assert [failure_of(own, layout) for own in trials] == told
    fail(trials, DataError("once more"), Environment(layout), mailbox)
    assert mailbox.take() == [], "told once"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("DataError: unreadable", True),
        ("ConfigError: x: wrong", True),
        ("DeadlineError: late", True),
        (f"{WorkerLostError.__name__}: again", True),
        ("RuntimeError: DataError: x", False),
        ("", False),
    ],
)
def test_what_another_attempt_would_meet_again(reason, expected):
    assert hopeless(TrialResult(key="k", status="failed", started=0, ended=0, reason=reason)) is expected
