"""A worker that hangs, with real Ray: it is found, ended, and its cohort goes on as if nothing had been."""

import os
import signal
import subprocess
import threading
import time

import pytest
import torch

from otkd.core.layout import Layout
from otkd.core.records import TrialResult
from otkd.core.trial import Data, Model, Train, Trial
from otkd.sweep import stopping
from otkd.sweep.runner import Mailbox
from otkd.sweep.spec import Resources
from otkd.sweep.tune import RayRunner
from otkd.train import Environment, fit

pytestmark = pytest.mark.long

HUNG_S = 15

TRIALS = [
    Trial(
        data=Data(name="digits", limit=400),
        student=Model(name="resnet14"),
        objective={"ce": {"weight": weight}},
        train=Train(epochs=12, batch_size=8),
    )
    for weight in (1.0, 2.0)
]


@pytest.fixture
def expected(tmp_path):
    """The same trained here, undisturbed: folder by key."""
    threads = torch.get_num_threads()
    layout = Layout(tmp_path / "undisturbed")
    fit(TRIALS, Mailbox(), Environment(layout, device="cpu", threads=1))
    torch.set_num_threads(threads)
    return {trial.key: layout.trial(trial.key) for trial in TRIALS}


def workers():
    """Processes of this test that train a cohort, by Ray's name for them."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found = [row.split(None, 2) for row in rows.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in found}

    def mine(pid):
        return pid == os.getpid() or (pid in parents and mine(parents[pid]))

    return [int(pid) for pid, _, *name in found if name and "Trainable" in name[0] and mine(int(pid))]


def when(condition, act):
    """Do something in a thread as soon as something holds."""

    def watch():
        until = time.monotonic() + 240
        while not condition() and time.monotonic() < until:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def is_fresh(file):
    """Whether a pulse has changed within the last two seconds."""
    return file.exists() and time.time() - file.stat().st_mtime < 2


def test_a_hung_worker_is_ended_and_all_go_on_also_when_asked_to_stop(tmp_path, expected):
    layout, mailbox, frozen = Layout(tmp_path / "runs"), Mailbox(), []
    folders = [layout.trial(trial.key) for trial in TRIALS]

    def freeze():
        frozen.extend(workers())
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)

    def another_trains():
        return bool(frozen) and set(workers()) - set(frozen) and is_fresh(folders[0].pulse)

    environment = Environment(layout, device="cpu", heed_stop=True, checkpoint_s=0.5)
    with RayRunner(environment, Resources(hung_s=HUNG_S)) as runner:
        doings = [
            when(lambda: folders[0].checkpoint.exists(), freeze),
            when(another_trains, lambda: stopping.ask(layout)),
        ]
        runner.run([TRIALS], 1, mailbox)
        for doing in doings:
            doing.join()
        first = mailbox.take()
        stopping.forget(layout)
        runner.run([TRIALS], 1, mailbox)
    assert len(frozen) == 1
    notes = [text for kind, text in first if kind == "note"]
    assert notes[0] == f"resnet14, seed 0 (ce): no progress for {HUNG_S} s; its worker is ended"
    assert notes[1].startswith("a worker was lost")
    assert not [text for kind, text in first if kind == "finish"], "asked to stop before"
    ended = [TrialResult.model_validate_json(text) for kind, text in mailbox.take() if kind == "finish"]
    assert [result.status for result in ended] == ["finished"] * 2
    for folder in folders:
        weights = torch.load(folder.last, weights_only=True)
        undisturbed = torch.load(expected[folder.path.name].last, weights_only=True)
        assert all(torch.equal(weights[name], tensor) for name, tensor in undisturbed.items())
