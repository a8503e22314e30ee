"""Whole sweeps by the command line, with real Ray and real MLflow."""

import fcntl
import ipaddress
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from otkd import cli
from otkd.core import names
from otkd.core.layout import Layout
from otkd.sweep.plan import make
from otkd.sweep.spec import load

OTKD = [sys.executable, "-c", "from otkd.cli import main; main()"]


def environment(**changes):
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "OTKD_DATA_DIR", "RAY_ADDRESS")
    }
    return {**inherited, **changes}


def otkd(*words, **changes):
    """Run a command to its end."""
    return subprocess.run(
        [*OTKD, *map(str, words)], capture_output=True, text=True, env=environment(**changes), check=False, timeout=300
    )


def launch(*words):
    """Start a command that hears Ctrl-C, also where the tests themselves run in the background of a shell."""
    return subprocess.Popen(
        [*OTKD, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,  # a group of its own, as a terminal gives to a command
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def events(runs, kind):
    path = runs / "records" / "tiny.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if f'"event": "{kind}"' in line and line.endswith("}")]


def listening(pid):
    """Addresses on which a process and those below it listen; Ray's are reached by whoever reaches the machine."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    children: dict[int, list[int]] = {}
    for child, parent in (map(int, row.split()) for row in rows):
        children.setdefault(parent, []).append(child)
    family, todo = set(), [pid]
    while todo:
        family.add(todo[-1])
        todo += children.get(todo.pop(), [])
    sockets = {name for member in family for name in _open_files(member)}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.add(_address(words[1].split(":")[0]))
    return found


def _open_files(pid):
    try:
        return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it ended just now
        return []


def _address(words):
    packed = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    return str(getattr(address, "ipv4_mapped", None) or address)


def trial_runs(runs) -> pd.DataFrame:
    client_uri = f"sqlite:///{(runs / 'mlflow.db').resolve()}"
    mlflow.set_tracking_uri(client_uri)
    try:
        found = mlflow.search_runs(search_all_experiments=True)
    finally:
        mlflow.set_tracking_uri(None)
    return found[found[f"tags.{names.TAG_KIND}"] != "sweep"]


def assert_each_once(runs, plan):
    """One finished run per key, every epoch in it exactly once."""
    found = trial_runs(runs)
    assert sorted(found[f"tags.{names.TAG_KEY}"]) == sorted(item.trial.key for item in plan.all)
    assert set(found["status"]) == {"FINISHED"}
    client = mlflow.MlflowClient(f"sqlite:///{(runs / 'mlflow.db').resolve()}")
    epochs = plan.spec.train.epochs
    for run_id in found["run_id"]:
        for metric in (names.TRAIN_LOSS, names.VAL_TOP1):
            steps = [point.step for point in client.get_metric_history(run_id, metric)]
            assert sorted(steps) == list(range(1, epochs + 1))


def last_weights(runs, plan):
    return {item.trial.key: torch.load(Layout(runs).trial(item.trial.key).last, weights_only=True) for item in plan.all}


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert all(torch.equal(left[key][name], right[key][name]) for name in left[key])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    import yaml

    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    sweep = {
        "name": "tiny",
        "question": "Does it run, <b>really</b>?",
        "data": {"name": "digits", "val": 0.2, "limit": 300},
        "pairs": [{"teacher": "resnet14", "student": "resnet8"}],
        "train": {"epochs": 6, "batch_size": 16, "schedule": {"name": "constant"}},
        "methods": {"student": {"ce": 1}, "kd": {"ce": 0.1, "kd": 0.9}, "ot": {"ce": 1, "transport": 1}},
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(file):
    return make(load(file))


@pytest.fixture(scope="module")
def local_runs(file, plan, tmp_path_factory):
    """The sweep run without Ray, undisturbed."""
    runs = tmp_path_factory.mktemp("local") / "runs"
    done = otkd("sweep", file, "--local", "--runs", runs)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


def test_a_local_sweep_leaves_records_report_and_table(local_runs, plan, file):
    assert_each_once(local_runs, plan)
    folder = local_runs / "reports" / "tiny"
    assert {"report.html", "report.md", "tables", "figures"} <= {path.name for path in folder.iterdir()}
    assert "<b>really</b>" not in (folder / "report.html").read_text(encoding="utf-8")
    found = trial_runs(local_runs)
    students = found[found[f"tags.{names.TAG_KIND}"] == "student"]
    assert students["tags.mlflow.parentRunId"].nunique() == 1
    assert set(students[f"tags.{names.TAG_METHOD}"]) == {"student", "kd", "ot"}
    assert "resnet8 ← resnet14 · kd · seed 1" in set(students["tags.mlflow.runName"])
    assert (students["params.train.epochs"] == "6").all()


def test_the_report_agrees_with_mlflow(local_runs):
    done = otkd("report", "--runs", local_runs)
    assert done.returncode == 0, done.stderr
    csv = pd.read_csv(local_runs / "reports" / "tiny" / "trials.csv").set_index("key")
    found = trial_runs(local_runs).set_index(f"tags.{names.TAG_KEY}")
    for column in (names.test("last", "top1"), names.test("best", "top1"), names.PARAMS, names.MADDS):
        pd.testing.assert_series_equal(
            csv[column].sort_index(), found[f"metrics.{column}"].sort_index(), check_names=False
        )


def test_running_again_finds_nothing_to_do(local_runs, file):
    before = (local_runs / "mlflow.db").stat().st_size
    done = otkd("sweep", file, "--local", "--runs", local_runs)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "kd" in done.stdout
    assert (local_runs / "mlflow.db").stat().st_size == before


def test_what_was_trained_stands_without_a_report(local_runs, file, tmp_path, monkeypatch):
    runs = tmp_path / "our runs"
    shutil.copytree(local_runs, runs, ignore=shutil.ignore_patterns("reports"))
    (runs / "reports").write_text("in the way")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(cli.app, ["sweep", str(file), "--local", "--json", "--runs", str(runs)])
    assert done.exit_code == 1
    assert f"there is no report: cannot write the report to {runs}/reports/tiny: " in done.stderr
    assert f"`otkd report tiny --runs '{runs}'` makes it alone" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    (runs / "reports").unlink()
    done = CliRunner().invoke(cli.app, ["sweep", str(file), "--local", "--quiet", "--runs", str(runs)])
    assert done.exit_code == 0
    assert (runs / "reports" / "tiny" / "report.html").exists()


@pytest.mark.long
def test_ray_gives_the_same_weights_as_one_process_also_after_kill_9(local_runs, plan, file, tmp_path):
    runs = tmp_path / "runs"
    driver = launch("sweep", file, "--runs", runs)
    wait_for(lambda: len(events(runs, "epoch")) > plan.spec.train.epochs, driver)  # students are under way
    open_to = listening(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert open_to == {"127.0.0.1"}
    assert 1 <= len(events(runs, "finish")) < len(plan.all)
    done = otkd("sweep", file, "--runs", runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_each_once(runs, plan)
    assert_same_weights(last_weights(local_runs, plan), last_weights(runs, plan))
    assert "nothing to do" in otkd("sweep", file, "--runs", runs).stdout


def test_a_second_sweep_in_the_same_place_is_refused(file, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = otkd("sweep", file, "--runs", tmp_path)
    assert done.returncode == 1
    assert "another sweep is running in" in done.stderr


@pytest.mark.parametrize("words", ["--json 2>/dev/null", "2>&1"])
def test_a_sweep_whose_reader_leaves_goes_on(file, tmp_path, words):
    """As in `otkd sweep … | head -1`."""
    command = [*OTKD, "sweep", str(file), "--local", "--runs", str(tmp_path / "runs")]
    shorter = ["--set", "train.epochs=1", "--set", "seeds=[0]"]
    line = f"set -o pipefail; {shlex.join([*command, *shorter])} {words} | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "runs" / "records" / "tiny.session.json").read_text(encoding="utf-8"))
    assert told["ended"] == "finished"
    assert len(events(tmp_path / "runs", "finish")) == 1 + 3


@pytest.mark.long
def test_ctrl_c_stops_with_one_line_and_the_same_command_goes_on(plan, file, tmp_path):
    runs = tmp_path / "runs"
    driver = launch("sweep", file, "--local", "--runs", runs)
    wait_for(lambda: len(events(runs, "epoch")) >= 8, driver)
    driver.send_signal(signal.SIGINT)
    output = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130
    assert "The same command goes on from here" in output
    assert "Traceback" not in output
    done = otkd("sweep", file, "--local", "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert_each_once(runs, plan)


def ctrl_c(driver, runs):
    os.killpg(driver.pid, signal.SIGINT)  # all processes of the command hear it


def twice(driver, runs):
    ctrl_c(driver, runs)
    time.sleep(0.3)
    ctrl_c(driver, runs)


def from_a_second_terminal(driver, runs):
    done = otkd("stop", "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert driver.poll() is not None or driver.wait(10) == 130, "it waits for the driver"


STOPS = ((ctrl_c, True), (from_a_second_terminal, True), (twice, False))
"""How a sweep is told to stop, and whether its trials save."""


@pytest.mark.long
def test_ray_is_told_to_stop_and_the_same_command_goes_on(local_runs, plan, file, tmp_path):
    """By Ctrl-C, by `otkd stop`, by Ctrl-C twice, one after the other."""
    runs = tmp_path / "runs"
    for stop, saves in STOPS:
        before = len(events(runs, "epoch"))
        driver = launch("sweep", file, "--runs", runs)
        wait_for(lambda before=before: len(events(runs, "epoch")) > before, driver, 240)
        family = set(below(driver.pid))
        stop(driver, runs)
        output = driver.communicate(timeout=120)[0]
        assert driver.returncode == 130, output
        assert "The same command goes on from here" in output
        assert "Traceback" not in output
        assert gone(family), "Ray's processes are left"
        begun, ended = ({event["key"] for event in events(runs, kind)} for kind in ("start", "finish"))
        assert ended < set(plan.trials), "told to stop in the middle"
        if saves:
            assert all(Layout(runs).trial(key).checkpoint.exists() for key in begun - ended)
    done = otkd("sweep", file, "--runs", runs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_each_once(runs, plan)
    assert_same_weights(last_weights(local_runs, plan), last_weights(runs, plan))


def gone(pids, seconds=60):
    """Whether none of these processes is left."""
    deadline = time.monotonic() + seconds
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _runs(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_results_that_the_store_has_lost_are_logged_again(local_runs, plan, file, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "trials").symlink_to(local_runs / "trials")
    (runs / "cache").symlink_to(local_runs / "cache")
    done = otkd("sweep", file, "--local", "--runs", runs)
    assert done.returncode == 0, done.stderr
    assert_each_once(runs, plan)


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (("sweep", "none.yaml"), {}, "there is no file none.yaml"),
        (("sweep", "FILE", "--set", "train.epochs=0"), {}, "train.epochs: Input should be greater than 0. Got 0."),
        (("sweep", "FILE"), {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        (
            ("sweep", "FILE", "--set", "data.name=cifar100", "--set", "data.limit=500"),
            {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"},  # no network
            "try `make demo`, which needs no data",
        ),
        (("report",), {}, "nothing is recorded"),
        (("list", "losss"), {}, "Did you mean 'losses'?"),
    ],
)
def test_bad_input_gives_one_clear_message(file, tmp_path, words, changes, message):
    words = [str(file) if word == "FILE" else word for word in words]
    runs = [] if words[0] == "list" else ["--runs", str(tmp_path / "runs")]
    done = otkd(*words, *runs, **changes)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("otkd: ") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(Path(tmp_path).glob("runs/trials/*"))


@pytest.mark.parametrize("what", ["losses", "models", "data", "solvers", "sweeps"])
def test_list(what):
    done = otkd("list", what)
    assert done.returncode == 0, done.stderr
    assert {"losses": "transport", "models": "resnet8", "data": "digits", "solvers": "sinkhorn", "sweeps": "sweeps/"}[
        what
    ] in done.stdout


def results(runs):
    files = (runs / "trials").glob("*/result.json")
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def below(pid):
    """Processes below one, by id, with what they call themselves."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents = {int(row.split()[0]): (int(row.split()[1]), " ".join(row.split()[2:])) for row in rows.splitlines()}

    def descends(child):
        parent = parents.get(child, (0, ""))[0]
        return parent == pid or (parent > 1 and descends(parent))

    return {child: args for child, (_, args) in parents.items() if descends(child)}


@pytest.mark.long
def test_two_processes_a_cohort_survive_the_loss_of_one(local_runs, file, tmp_path):
    """On a CPU, by gloo. The loss is noticed by the other, and the cohort goes on from its checkpoint."""
    runs = tmp_path / "runs"
    driver = launch(
        *("sweep", file, "--runs", runs, "--set", "resources.gpus_per_trial=2", "--set", "seeds=[0]"),
        *("--set", "resources.retries=2"),
    )
    wait_for(lambda: events(runs, "epoch"), driver, 240)
    open_to = listening(driver.pid)
    [second] = [pid for pid, args in below(driver.pid).items() if args.startswith("ray::Rank")]
    os.kill(second, signal.SIGKILL)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    assert open_to == {"127.0.0.1"}
    assert "a worker was lost" in output
    alone, shared = results(local_runs), results(runs)
    assert len(shared) == 1 + 3
    for result in shared.values():
        assert result["status"] == "finished", result["reason"]
        assert result["provenance"]["processes"] == "2"
        assert [record["epoch"] for record in result["epochs"]] == list(range(1, 7))
    plain = [item.trial.key for item in make(load(file)).all if item.label.method in ("teacher", "student")]
    for key in plain[:2]:  # what their first epoch gives; rounding grows a thousandfold in each, with so large a step
        first, expected = (runs[key]["epochs"][0]["metrics"][names.TRAIN_LOSS] for runs in (shared, alone))
        assert first == pytest.approx(expected, rel=0.05)


def test_more_processes_than_cores_are_refused(file, tmp_path):
    done = otkd("sweep", file, "--runs", tmp_path, "--set", "resources.gpus_per_trial=999")
    assert done.returncode == 1
    assert "resources.gpus_per_trial: 999 processes a cohort need a core each" in done.stderr


def test_several_processes_need_ray(file, tmp_path):
    done = otkd("sweep", file, "--local", "--runs", tmp_path, "--set", "resources.gpus_per_trial=2")
    assert done.returncode == 1
    assert "resources.gpus_per_trial: 2 processes need Ray; leave --local out, or set it to 1." in done.stderr
