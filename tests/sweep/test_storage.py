"""Trials' folders kept on a storage; two folders stand for two machines. Truth: undisturbed runs without a storage."""

import json
import logging
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from otkd.core import storage
from otkd.core.errors import StorageError
from otkd.core.layout import Layout, write_text
from otkd.core.records import TrialResult
from otkd.core.storage import Fetcher, Mirror, Storage, opened, scratch
from otkd.core.trial import Augment, Constant, Data, Model, Train, Trial
from otkd.sweep.runner import Mailbox
from otkd.sweep.session import Session
from otkd.sweep.spec import Resources
from otkd.sweep.tune import Courier, RayRunner
from otkd.train import CohortTrainer, Environment, fit

DATA = Data(name="digits", val=0.2, limit=120, augment=Augment(pad=1))
TRAIN = Train(epochs=3, batch_size=32, schedule=Constant(name="constant"))
TEACHER = Trial(data=DATA, student=Model(name="resnet14"), objective={"ce": {}}, train=TRAIN)
STUDENT = Trial(data=DATA, student=Model(name="resnet8"), teacher=TEACHER, objective={"kd": {}}, train=TRAIN)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES_S", (0.0, 0.0))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`runs/` of a teacher and a student that were trained without a storage."""
    layout = Layout(tmp_path_factory.mktemp("undisturbed"))
    torch.set_num_threads(1)
    for trial in (TEACHER, STUDENT):
        fit([trial], Mailbox(), Environment(layout=layout, device="cpu"))
    return layout


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path):
    """A storage of each kind: where files are moved into place, and where they are seen once they are whole."""
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/shared"


@pytest.fixture(scope="module")
def s3():
    """A real server that speaks S3, on a free port of this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, tmp_path):
    """An empty folder in a bucket, reached by the environment alone, as in a real cluster."""
    import s3fs

    credentials = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**credentials, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("otkd-tests", exist_ok=True)
    return f"s3://otkd-tests/{tmp_path.name}"


def node(root, url):
    """A machine of its own that reaches the storage."""
    return Environment(layout=Layout(root), device="cpu", mirror=Storage(url))


def weights(layout, trial):
    return torch.load(layout.trial(trial.key).last, weights_only=True)


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def names(mirror, trial):
    return set(mirror._all().get(trial.key, {}))


def test_another_machine_goes_on_where_one_was_lost(url, undisturbed, tmp_path):
    first, second = node(tmp_path / "first", url), node(tmp_path / "second", url)
    Storage(url).reconcile([undisturbed.trial(TEACHER.key)])
    lost = CohortTrainer([STUDENT], Mailbox(), first)
    lost.step()
    lost.save()
    assert names(first.mirror, STUDENT) >= {"trial.json", "checkpoint.pt"}
    lost.step()  # and is lost before it saves
    box = Mailbox()
    fit([STUDENT], box, second)
    assert [json.loads(text)["epoch"] for kind, text in box.take() if kind == "epoch"] == [2, 3]
    assert_same(weights(second.layout, STUDENT), weights(undisturbed, STUDENT))
    assert names(second.mirror, STUDENT) >= {"result.json", "last.pt", "best.pt"}
    assert "checkpoint.pt" not in names(second.mirror, STUDENT)
    [back] = fit([STUDENT], Mailbox(), first)  # the lost machine, with an old checkpoint in its folder
    assert back.status == "finished"
    assert not first.layout.trial(STUDENT.key).checkpoint.exists()
    assert_same(weights(first.layout, STUDENT), weights(undisturbed, STUDENT))


def folder(root, **files):
    """A trial's folder with files of these contents."""
    place = Layout(root).trial("0123456789abcdef")
    place.path.mkdir(parents=True, exist_ok=True)
    for part, content in files.items():
        getattr(place, part).write_text(content)
    return place


def content(place):
    return {path.name: path.read_text() for path in place.path.iterdir()}


def test_a_fetched_folder_is_what_the_storage_has(url, tmp_path):
    here = folder(tmp_path / "here", trial="t", checkpoint="new", previous="old", last="l", pulse="p")
    Storage(url).keep(here)
    there = folder(tmp_path / "there", trial="t", checkpoint="older", previous="oldest", failed="f", pulse="mine")
    Storage(url).fetch(there)
    assert content(there) == {"trial.json": "t", "checkpoint.pt": "new", "last.pt": "l", "pulse": "mine"}


def test_a_checkpoint_stays_where_the_storage_has_none_and_gets_there_next(url, tmp_path):
    """As where the storage was away when it was taken. An end is the storage's to know."""
    here, mirror = folder(tmp_path, trial="t", checkpoint="c", previous="p", failed="f"), Storage(url)
    mirror.fetch(here)
    assert content(here) == {"trial.json": "t", "checkpoint.pt": "c", "checkpoint.previous.pt": "p"}
    mirror.keep(here)
    there = folder(tmp_path / "there")
    Storage(url).fetch(there)
    assert content(there) == {"trial.json": "t", "checkpoint.pt": "c"}


def test_what_has_ended_in_runs_is_never_fetched_away(url, tmp_path):
    """Another sweep has trained it without a storage, or somebody has emptied that."""
    here, mirror = folder(tmp_path, trial="t", last="l", best="b", result="r", checkpoint="c"), Storage(url)
    ended = content(here)
    mirror.fetch(here)
    assert content(here) == ended
    Storage(url).forget(here)
    mirror.fetch(here)
    assert content(here) == ended
    there = folder(tmp_path / "there")
    Storage(url).fetch(there)
    assert content(there) == ended


def test_on_a_node_what_the_storage_has_forgotten_is_trained_again(url, tmp_path, monkeypatch):
    """As where its driver has set a result aside."""
    monkeypatch.setenv("OTKD_SCRATCH", str(tmp_path))
    here = folder(scratch(url, "host:/x").root, trial="t", last="l", result="r")
    there = scratch(url, "host:/x").trial(here.path.name)
    Storage(url).fetch(there)
    assert content(there) == {"trial.json": "t"}


def test_a_driver_that_tells_of_a_lost_worker_leaves_its_newer_checkpoint_alone(url, tmp_path):
    """The driver has one of an earlier session, the storage what the worker has saved in this one."""
    layout = Layout(tmp_path / "runs")
    own, lost = layout.trial(STUDENT.key), Layout(tmp_path / "node").trial(STUDENT.key)
    for place, saved in ((own, "old"), (lost, "new")):
        place.path.mkdir(parents=True)
        place.checkpoint.write_text(saved)
    Storage(url).keep(lost)
    runner = RayRunner(Environment(layout, mirror=Storage(url)), Resources(), address="elsewhere:1")
    ended = SimpleNamespace(config={"cohort": [STUDENT.model_dump_json()]}, trial_id="t", get_error=lambda: "it died")
    box = Mailbox()
    courier = Courier(box, runner, runner.overseer(box, lambda _: [STUDENT]))
    courier.on_trial_start(0, [], ended)
    courier.on_trial_error(0, [], ended)
    [(kind, text)] = box.take()
    assert (kind, json.loads(text)["status"]) == ("finish", "failed")
    found = Layout(tmp_path / "another").trial(STUDENT.key)
    Storage(url).fetch(found)
    assert set(content(found)) == {"checkpoint.pt", "failed.json"}
    assert found.checkpoint.read_text() == own.checkpoint.read_text() == "new"


def test_only_what_changed_is_copied_and_the_result_comes_last(url, tmp_path, monkeypatch):
    here, mirror, copied = folder(tmp_path, trial="t", checkpoint="1"), Storage(url), []
    upload = Storage._upload
    monkeypatch.setattr(Storage, "_upload", lambda self, path, to: (copied.append(path.name), upload(self, path, to)))
    mirror.keep(here)
    here.checkpoint.unlink()
    folder(tmp_path, result="r", last="l", snapshots="s")
    mirror.settle(here)
    assert copied[:2] == ["trial.json", "checkpoint.pt"]
    assert sorted(copied[2:4]) == ["last.pt", "snapshots.json"]
    assert copied[4:] == ["result.json"]
    assert Storage(url)._all() == Storage(url)._all(here.path.name)
    assert set(Storage(url)._all()[here.path.name]) == {"trial.json", "last.pt", "snapshots.json", "result.json"}


def test_runs_and_storage_are_brought_to_the_same_state(url, tmp_path):
    mirror = Storage(url)
    runs = Layout(tmp_path / "runs")
    ended_there, ended_here, begun_here, begun_both, set_aside = (runs.trial(letter * 16) for letter in "abcde")
    for place, part in ((ended_there, "result"), (begun_both, "checkpoint"), (set_aside, "result")):
        elsewhere = Layout(tmp_path / "elsewhere").trial(place.path.name)
        elsewhere.path.mkdir(parents=True)
        getattr(elsewhere, part).write_text("there")
        mirror.settle(elsewhere)
    for place, part in ((ended_here, "result"), (begun_here, "checkpoint"), (begun_both, "checkpoint")):
        place.path.mkdir(parents=True)
        getattr(place, part).write_text("here")
    set_aside.path.mkdir(parents=True)
    set_aside.set_aside.write_text("there")
    outside = tmp_path / "runs" / "weights" / "w.pt"
    outside.parent.mkdir()
    outside.write_text("w")
    Storage(url).reconcile([ended_there, ended_here, begun_here, begun_both, set_aside], [outside])
    assert content(ended_there) == {"result.json": "there"}
    assert content(begun_both) == {"checkpoint.pt": "here"}
    assert content(set_aside) == {set_aside.set_aside.name: "there"}
    found = {key[0]: set(files) for key, files in Storage(url)._all().items()}
    expected = {"a": {"result.json"}, "b": {"result.json"}, "c": {"checkpoint.pt"}, "d": {"checkpoint.pt"}}
    assert found == expected
    fetched = tmp_path / "fetched" / "w.pt"
    Storage(url).fetch_weights(fetched)
    assert fetched.read_text() == "w"


class Deaf:
    """A tracking store that keeps nothing."""

    def __init__(self, info, layout):
        pass

    def close(self):
        pass


def test_of_what_a_search_names_the_storage_gets_what_other_sweeps_have_trained(plan, layout, tmp_path, monkeypatch):
    """Before it begins: workers on other machines look there alone."""
    monkeypatch.setattr("otkd.sweep.session.MlflowSink", Deaf)
    ended, begun, new = (letter * 16 for letter in "abc")
    write_text(layout.trial(ended).result, "r")
    write_text(layout.trial(begun).checkpoint, "c")
    labels = [plan.students[0].label.model_copy(update={"key": key}) for key in (ended, begun, new)]
    with Session(plan, layout, Console(file=StringIO())) as session:
        session._mirror = Storage(f"file://{tmp_path}/shared")
        session.progress.plan(plan.info.with_labels(labels))
    found = Storage(f"file://{tmp_path}/shared")._all()
    assert {key: set(files) for key, files in found.items()} == {ended: {"result.json"}, begun: {"checkpoint.pt"}}


def test_a_half_written_file_is_never_seen(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    here, mirror = folder(tmp_path / "runs", trial="t", checkpoint="whole"), Storage(f"file://{tmp_path}/shared")
    mirror.keep(here)
    whole = LocalFileSystem.pipe_file

    def torn(self, path, value, **options):
        whole(self, path, value[: len(value) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", torn)
    here.checkpoint.write_text("whole again")
    mirror.keep(here)
    there = folder(tmp_path / "there")
    Storage(f"file://{tmp_path}/shared").fetch(there)
    assert content(there) == {"trial.json": "t", "checkpoint.pt": "whole"}


class Refusing(Storage):
    """A storage that stops answering, and may answer again."""

    away = False

    def _put(self, content, target):
        if self.away:
            raise ConnectionError("no route to host")
        super()._put(content, target)


def test_training_goes_on_while_the_storage_is_away(undisturbed, tmp_path, caplog):
    mirror = Refusing(f"file://{tmp_path}/shared")
    mirror.reconcile([undisturbed.trial(TEACHER.key)])
    trainer = CohortTrainer([STUDENT], Mailbox(), Environment(Layout(tmp_path / "runs"), device="cpu", mirror=mirror))
    mirror.away = True
    with caplog.at_level(logging.WARNING, "otkd"):
        trainer.step()
        trainer.save()
        trainer.save()
    assert [record.message.count("no route to host") for record in caplog.records] == [1]
    mirror.away = False
    while not trainer.done:
        trainer.step()
    assert "result.json" in names(mirror, STUDENT)


def test_an_end_that_cannot_be_left_there_is_an_error(tmp_path):
    mirror = Refusing(f"file://{tmp_path}/shared")
    mirror.away = True
    with pytest.raises(
        StorageError, match=r"storage file:.*shared refuses or does not answer \(ConnectionError: no route"
    ):
        mirror.settle(folder(tmp_path / "runs", result="r"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://FILE/below", "refuses or does not answer"),
        ("nosuch://bucket", "Protocol not known: nosuch"),
        ("adl://bucket/x", "needs a package that is not here"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_before_anything_starts(url, message, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=message) as caught:
        Storage(url.replace("FILE", str(tmp_path / "file"))).probe()
    assert "\n" not in str(caught.value)


def test_a_probe_leaves_nothing_behind(url):
    mirror = Storage(url)
    mirror.probe()
    assert mirror._files.find(mirror._root) == []


def test_the_driver_gets_what_workers_have_left(url, tmp_path):
    there, here = folder(tmp_path / "node", result="r", last="l"), folder(tmp_path / "driver")
    Storage(url).settle(there)
    about = {"key": here.path.name, "started": 0.0, "ended": 1.0}
    sink = Fetcher(Storage(url), Layout(tmp_path / "driver"))
    sink.finish(TrialResult(status="pruned", **about))
    assert content(here) == {}
    sink.finish(TrialResult(status="finished", **about))
    assert content(here) == {"result.json": "r", "last.pt": "l"}


def test_no_storage_does_nothing(tmp_path):
    here = folder(tmp_path, checkpoint="c", failed="f")
    mirror = opened(None)
    mirror.fetch(here), mirror.keep(here), mirror.settle(here)
    assert type(mirror) is Mirror
    assert content(here) == {"checkpoint.pt": "c", "failed.json": "f"}


def test_drivers_do_not_share_a_nodes_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("OTKD_SCRATCH", str(tmp_path))
    places = {scratch(url, owner).root for url in ("s3://a", "s3://b") for owner in ("host:/x", "host:/y")}
    assert len(places) == 4
    assert {place.parent for place in places} == {tmp_path}
