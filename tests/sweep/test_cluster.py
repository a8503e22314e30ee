"""Ray clusters: several nodes on this machine, by `ray.cluster_utils`, and a head that `ray start` has started."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
import torch
import yaml
from ray.cluster_utils import Cluster

from otkd.core.errors import OtkdError
from otkd.core.layout import Layout
from otkd.core.storage import opened, scratch
from otkd.sweep import cluster
from otkd.sweep.cluster import TYPE, Relay, Room, Wanted, look
from otkd.sweep.plan import make
from otkd.sweep.spec import Resources, load
from otkd.sweep.tune import RayRunner
from otkd.train import Environment

OTKD = [sys.executable, "-c", "from otkd.cli import main; main()"]
SWEEP = {
    "name": "tiny",
    "data": {"name": "digits", "val": 0.2, "limit": 150},
    "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
    "train": {"epochs": 2, "batch_size": 32, "schedule": {"name": "constant"}},
    "methods": {"student": {"ce": 1}, "kd": {"ce": 0.1, "kd": 0.9}},
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three nodes: a head with a core, one with a fake GPU of type T4, one with two of type A100."""
    here = {"node_ip_address": "127.0.0.2"}  # nobody else reaches it; Ray takes 127.0.0.1 for something else
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **here})
    made.add_node(num_cpus=2, num_gpus=1, resources={f"{TYPE}T4": 1}, **here)
    made.add_node(num_cpus=3, num_gpus=2, resources={f"{TYPE}A100": 1}, **here)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False), encoding="utf-8")
    return path


def runner(nodes, tmp_path, storage=None, data_dir=None, **resources):
    environment = Environment(Layout(tmp_path / "runs"), data_dir=data_dir, mirror=opened(storage))
    return RayRunner(environment, Resources(**resources), nodes.address)


def otkd(*words, **changes):
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "OTKD_STORAGE")}
    return subprocess.run(
        [*OTKD, *map(str, words)],
        capture_output=True,
        text=True,
        env={**inherited, **changes},
        check=False,
        timeout=300,
    )


def weights(layout, plan):
    return {item.trial.key: torch.load(layout.trial(item.trial.key).last, weights_only=True) for item in plan.all}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert all(torch.equal(left[key][name], right[key][name]) for name in left[key])


@pytest.fixture(scope="module")
def alone(file, tmp_path_factory):
    """The sweep in one process."""
    runs = tmp_path_factory.mktemp("alone") / "runs"
    done = otkd("sweep", file, "--local", "--runs", runs)
    assert done.returncode == 0, done.stderr
    return Layout(runs)


@pytest.mark.long
def test_a_sweep_on_several_nodes_without_shared_runs(nodes, file, alone, tmp_path):
    """Workers train in a folder of their own, and the driver gets everything by the storage."""
    runs, shared, own = tmp_path / "runs", tmp_path / "shared", tmp_path / "own"
    words = ("--address", nodes.address, "--storage", f"file://{shared}", "--set", "resources.gpu=0")
    done = otkd("sweep", file, "--runs", runs, *words, OTKD_SCRATCH=str(own))
    assert done.returncode == 0, done.stdout + done.stderr
    plan = make(load(file))
    assert_same(weights(Layout(runs), plan), weights(alone, plan))
    [node] = own.iterdir()
    assert {path.parent.name for path in node.glob("trials/*/last.pt")} == set(plan.trials)
    assert not list(shared.glob("trials/*/checkpoint*"))
    assert "nothing to do" in otkd("sweep", file, "--runs", runs, *words).stdout
    another = otkd("sweep", file, "--runs", tmp_path / "another", *words, OTKD_SCRATCH=str(own))
    assert another.returncode == 0, another.stdout + another.stderr
    assert_same(weights(Layout(tmp_path / "another"), plan), weights(alone, plan))
    journal = tmp_path / "another" / "records" / "tiny.jsonl"
    assert '"event": "start"' not in journal.read_text(encoding="utf-8")  # nothing was trained again


@pytest.fixture(scope="module")
def joined(nodes, tmp_path_factory):
    """This process as a driver of the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTKD_SCRATCH", str(tmp_path_factory.mktemp("own")))
        patch.setenv("OTHER_MARK", "is not passed on")
        cluster.connect(nodes.address)
        yield nodes
        ray.shutdown()


SLOTS = [
    ({"gpu": 0}, 1 + 2 + 3),
    ({"gpu": 0, "cpu": 2}, 0 + 1 + 1),
    ({"gpu": 0, "cpu": 99}, 1),
    ({}, 0 + 1 + 2),
    ({"gpu": 0.5}, 0 + 2 + 3),
    ({"gpu": 0.25, "gpu_type": "A100"}, 3),
    ({"gpu_type": "T4"}, 1),
    ({"gpus_per_trial": 2}, 1),
]


@pytest.mark.parametrize(("resources", "slots"), SLOTS)
def test_slots_are_counted_node_by_node(joined, tmp_path, resources, slots):
    made = runner(joined, tmp_path, **resources)
    made._look_around()
    assert made.slots(made.resources.cpu) == slots


def test_a_type_of_gpu_is_asked_for_by_rays_name(joined, tmp_path):
    made = runner(joined, tmp_path, gpu_type="A100", gpu=0.5)
    made._look_around()
    assert made.bundle(1) == {"CPU": 1, "GPU": 0.5, "accelerator_type:A100": cluster.CLAIM}
    group = ray.util.placement_group([made.bundle(1)] * 3)
    ray.get(group.ready(), timeout=60)
    resources = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    placed = ray.util.placement_group_table(group)["bundles_to_node_id"].values()
    assert [f"{TYPE}A100" in resources[node] for node in placed] == [True] * 3
    ray.util.remove_placement_group(group)


def test_a_type_of_gpu_that_is_not_there_names_those_which_are(joined, tmp_path):
    message = r"resources\.gpu_type: there is no GPU of type 'H100'; here are A100, T4\."
    with pytest.raises(OtkdError, match=message):
        runner(joined, tmp_path, gpu_type="H100")._look_around()


def test_all_nodes_that_lack_something_are_named_together(joined, tmp_path):
    missing = tmp_path / "no-such-data"
    with pytest.raises(OtkdError) as caught:
        runner(joined, tmp_path, data_dir=missing)._look_around()
    assert str(caught.value).startswith("3 of 3 nodes cannot take part:")
    assert str(caught.value).count(f"there is no data folder {missing}") == 3
    assert not list((tmp_path / "runs").glob(".token*"))


def test_the_driver_that_is_refused_leaves_the_cluster(file, nodes, tmp_path):
    done = otkd("sweep", file, "--runs", tmp_path, "--address", nodes.address, "--set", "resources.gpu_type=H100")
    assert done.returncode == 1
    assert "otkd: resources.gpu_type: there is no GPU of type 'H100'" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_workers_run_the_drivers_code_and_hear_its_settings(joined):
    @ray.remote(num_cpus=0)
    def where():
        sent = [path for path in sys.path if "/py_modules_files/" in path and (Path(path) / "otkd/cli").exists()]
        return len(sent), os.environ.get("OTKD_SCRATCH"), os.environ.get("OTHER_MARK")

    sent, scratch_folder, other = ray.get(where.remote(), timeout=60)
    assert sent == 1
    assert (scratch_folder, other) == (os.environ["OTKD_SCRATCH"], None)


def test_what_one_machine_sees(tmp_path, monkeypatch):
    runs, wanted = tmp_path / "runs", Wanted(str(tmp_path / "runs"), "token", None, "me", str(tmp_path))
    runs.mkdir()
    assert look(wanted, "n").lacks == (f"{runs} is not the driver's",)
    (runs / "token").touch()
    assert look(wanted, "n").lacks == ()
    assert (runs / "token.n").exists()
    monkeypatch.setattr(cluster, "NEEDED", ("torch", "no_such_module", "nor_this"))
    assert look(wanted, "n").lacks == ("packages are missing: no_such_module, nor_this",)
    (tmp_path / "file").touch()
    lacks = look(wanted._replace(runs=None, storage=f"file://{tmp_path}/file/x"), "n").lacks
    assert any("refuses or does not answer" in text for text in lacks)


def test_pulses_reach_the_driver_and_the_wish_to_stop_the_nodes(joined, tmp_path):
    storage = f"file://{tmp_path}/shared"
    made = runner(joined, tmp_path, storage=storage)
    made._look_around()
    there, here = scratch(storage, made.owner), made.environment.layout
    pulse = there.trial("a" * 16).pulse
    pulse.parent.mkdir(parents=True)
    pulse.touch()
    os.utime(pulse, ns=(10**9, 10**9))
    wait_for(lambda: here.trial("a" * 16).pulse.exists() and here.trial("a" * 16).pulse.stat().st_mtime_ns == 10**9)
    assert not there.stop.exists()
    here.stop.touch()
    wait_for(there.stop.exists)
    made._relay.end()
    assert look(Wanted(None, "", storage, made.owner, None), "n").lacks == ()
    assert not there.stop.exists()  # it was asked of another driver


def test_a_pulse_that_a_lost_worker_has_left_says_nothing_and_none_is_left_behind(tmp_path):
    """The trial `a` was lost on one node and goes on, or hangs, on another; `b` has ended; `c` goes on to the end."""
    layout = Layout(tmp_path)
    relay, pulse = Relay(layout, "file:///nowhere", "me"), {key: layout.trial(key).pulse for key in "abc"}
    for beat in (10, 20, 20):
        relay._show("well", {"a": beat, "b": beat, "c": beat})
        relay._show("left", {"a": 5})
    assert [pulse[key].stat().st_mtime_ns for key in "abc"] == [20, 20, 20]
    relay._show("well", {"a": 30, "c": 30})
    assert [pulse[key].exists() for key in "abc"] == [True, False, True]
    relay.start()
    relay.end()
    assert not list(layout.trials.glob("*/pulse"))


def wait_for(condition, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.1)


def test_nothing_listens(file, tmp_path):
    begin = time.monotonic()
    done = otkd("sweep", file, "--runs", tmp_path, "--address", f"127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert time.monotonic() - begin < 30
    assert done.stderr.startswith("otkd: no Ray cluster answers at 127.0.0.1:")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers at 127.0.0.1:{port} "),
        ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379 "),
        ("somewhere", "somewhere: that is not of the form HOST:PORT"),
        ("ray://127.0.0.1:{port}", "hears too little of its workers"),
    ],
)
def test_an_address_that_is_none_is_told_within_seconds(address, message):
    port, begin = free_port(), time.monotonic()
    with pytest.raises(OtkdError) as caught:
        cluster.connect(address.format(port=port))
    assert message.format(port=port) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 10


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
HEAD = "import ray; ray.__version__ = {version!r}; from ray.scripts.scripts import main; main()"


@pytest.fixture
def head():
    """Starts a head by the command line of Ray, of any version; gives its address."""
    started, folder = [], tempfile.mkdtemp(prefix="otkd-")  # sockets lie in it, whose paths are to be short

    def start(version=ray.__version__):
        port, host = free_port(), "127.0.0.1"
        words = (
            "start",
            f"--node-ip-address={host}",
            "--head",
            "--block",
            f"--port={port}",
            "--num-cpus=2",
            "--include-dashboard=false",
        )
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD.format(version=version), *words, f"--temp-dir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **TOKEN},
        )
        started.append(process)
        wait_for(lambda: process.poll() is None and _accepts(host, port))
        return f"{host}:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def _accepts(host, port):
    with socket.socket() as knocking:
        return knocking.connect_ex((host, port)) == 0


@pytest.mark.long
def test_a_cluster_with_another_ray_is_refused_in_one_line(head, file, tmp_path):
    done = otkd("sweep", file, "--runs", tmp_path / "runs", "--address", head("1.2.3"), **TOKEN)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("otkd: ")]
    assert "Version mismatch" in line
    assert "1.2.3" in line
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.long
def test_a_head_with_a_token_is_joined_by_those_who_have_it(head):
    address = head()
    look = "from otkd.sweep.cluster import connect; import ray; connect({!r}); print(ray.cluster_resources()['CPU'])"
    command = [sys.executable, "-c", look.format(address)]
    known = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **TOKEN}, check=False)
    assert known.stdout == "2.0\n", known.stderr
    wrong = {**TOKEN, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    unknown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **wrong}, check=False)
    assert unknown.returncode == 1
    assert "RAY_AUTH_MODE=token has to be set here, too" in unknown.stderr.splitlines()[-1]


LEAVING = """
import gc
import ray
from otkd.sweep import cluster
cluster.connect(cluster.HERE)
waste = [ray.put(1)]
waste.append(waste)
del waste
worker = ray._private.worker.global_worker
def shutdown():
    worker.core_worker.shutdown_driver()
    gc.collect()
ray.shutdown = shutdown
cluster.leave()
print("still here")
"""
"""A driver in which, while Ray goes, the collector runs in some thread: a moment that only chance would give."""


def test_what_is_collected_while_ray_goes_does_not_end_the_driver():
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "still here\n", done.stderr
    assert done.returncode == 0


def test_room_is_counted_by_whole_nodes():
    room = Room(({"CPU": 3.0, "GPU": 1.0}, {"CPU": 8.0}))
    assert room.total == {"CPU": 11.0, "GPU": 1.0}
    assert room.largest == 8.0
    assert (room.fits(2, 0), room.fits(2, 1), room.fits(0.1, 0.1), room.fits(9, 0)) == (5, 1, 10, 0)
