"""Energy by counters of ours: a folder as powercap's, a driver as NVIDIA's, a device of known power."""

import math
from types import SimpleNamespace

import pynvml
import pytest
import torch

from otkd.core import names
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, energy, engine, fit
from otkd.train.energy import Counter, Meter, counters
from otkd.train.running import Running

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


def no_driver():
    raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Two packages, a part of one, and the whole platform; `zones(…)` writes what the packages count, in joules."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    parts = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    for folder, name in parts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(f"{name}\n")
        (tmp_path / folder / "max_energy_range_uj").write_text("65000000000\n")
        (tmp_path / folder / "energy_uj").write_text("7\n")

    def write(first, second):
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{first * 1_000_000}\n")
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text(f"{second * 1_000_000}\n")

    return write


def test_packages_add_up_and_counters_begin_again(zones, clock):
    zones(100, 64_990)
    meter = Meter(counters(CPU))
    zones(130, 20)
    clock.now += 5
    assert meter.used() == (30 + 30, 5), "65,000 J is zero again"
    zones(140, 25)
    clock.now += 2
    assert meter.used() == (60 + 15, 7), "since the beginning, not since the last look"
    meter.begin()
    zones(141, 25)
    clock.now += 1
    assert meter.used() == (1, 1)


def test_a_counter_may_not_go_round_unseen(zones, clock):
    """65,000 J at 600 W are 108 s."""
    meter = Meter(counters(CPU))
    clock.now += 110
    assert math.isnan(meter.used()[0])
    meter.begin()
    for _ in range(2):
        clock.now += 100
        joules, seconds = meter.used()
    assert (joules, seconds) == (0, 200)


def test_a_counter_that_vanishes_leaves_no_figure(zones, clock, tmp_path):
    zones(1, 1)
    meter = Meter(counters(CPU))
    zones(2, 2)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert math.isnan(meter.used()[0])
    zones(3, 3)
    meter.begin()
    assert math.isnan(meter.used()[0]), "half of the packages are no figure"


@pytest.mark.parametrize("content", [None, "", "Permission denied"])
def test_what_cannot_be_read_is_no_counter(zones, tmp_path, content):
    file = tmp_path / "intel-rapl:1" / "max_energy_range_uj"
    file.unlink() if content is None else file.write_text(content)
    assert counters(CPU) == []
    assert math.isnan(Meter([]).used()[0])


def test_a_machine_without_powercap_has_no_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "missing")
    assert counters(CPU) == []


@pytest.fixture
def driver(monkeypatch):
    """NVIDIA's library with two GPUs; torch's second is the one with this UUID."""
    card = SimpleNamespace(mJ={"GPU-aa": 0, "GPU-bb": 5_000_000})

    def consumption(uuid):
        if card.mJ[uuid] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card.mJ[uuid]

    uuids = {CUDA: SimpleNamespace(uuid="bb")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", uuids.__getitem__)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", consumption)
    return card


def test_a_gpu_is_found_by_its_uuid(driver, clock):
    meter = Meter(counters(CUDA))
    driver.mJ = {"GPU-aa": 1_000_000, "GPU-bb": 5_002_500}
    clock.now += 1e6
    assert meter.used() == (2.5, 1e6)


@pytest.mark.parametrize("mJ", [None, 17])
def test_a_gpu_that_fails_or_begins_anew_leaves_no_figure(driver, mJ):
    meter = Meter(counters(CUDA))
    driver.mJ["GPU-bb"] = mJ
    assert math.isnan(meter.used()[0])


def test_without_a_driver_there_is_no_counter(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert counters(CUDA) == []


@pytest.fixture
def device(monkeypatch, clock):
    """Draws a known power, `None` once it does not tell any more; each look at the clock takes a second."""
    device = SimpleNamespace(watts=80.0)

    def look():
        clock.now += 1
        return clock.now

    def read():
        if device.watts is None:
            raise OSError("no such file")
        return device.watts * clock.now

    clock.monotonic = look
    monkeypatch.setattr(energy, "time", clock)
    monkeypatch.setattr(engine, "counters", lambda _: [Counter(read)])
    return device


def joules_by_second(result):
    return [record.metrics[names.EPOCH_J] / record.metrics[names.EPOCH_S] for record in result.epochs]


def test_each_epoch_has_its_seconds_times_the_power(environment, trial, device):
    trials = [trial("student", teacher=None), trial("ot", teacher=None, objective={"ce": {"weight": 2.0}})]
    for result in fit(trials, Mailbox(), environment()):
        assert joules_by_second(result) == pytest.approx([80.0] * 3)
        assert result.metrics[names.TRIAL_J] == sum(record.metrics[names.EPOCH_J] for record in result.epochs)
        assert result.metrics[names.TRIAL_J] == pytest.approx(80 * result.metrics[names.WALL_S])


class Stop(BaseException):
    """Ends training where it stands, as a killed process does."""


def test_interrupted_in_the_middle_nothing_is_lost_or_counted_twice(environment, trial, device, monkeypatch):
    """Stopped after two of four batches of the second epoch; where it goes on, the device draws another power."""
    here, done, mailbox = environment(checkpoint_s=0.0), [], Mailbox()
    monkeypatch.setattr(engine, "SAVING", 1e9)
    train = CohortTrainer._train_batch

    def stop(self, *args):
        if len(done) == 6:
            raise Stop
        done.append(1)
        train(self, *args)

    monkeypatch.setattr(CohortTrainer, "_train_batch", stop)
    trials = [trial("kd"), trial("at")]
    with pytest.raises(Stop):
        fit(trials, mailbox, here)
    monkeypatch.setattr(CohortTrainer, "_train_batch", train)
    device.watts = 160.0
    before = [student.running.spent for student in CohortTrainer(trials, Mailbox(), here).students]
    assert [joules / seconds for *_, joules, seconds in before] == pytest.approx([80.0] * 2)
    for result in fit(trials, mailbox, here):
        first, second, third = joules_by_second(result)
        assert (first, third) == pytest.approx((80, 160))
        assert 80 < second < 160
        assert result.metrics[names.TRIAL_J] == sum(record.metrics[names.EPOCH_J] for record in result.epochs)
    assert [kind for kind, _ in mailbox.take()].count("epoch") == 2 * 3


def test_a_device_that_falls_silent_leaves_the_trial_without_a_figure(environment, trial, device):
    trainer = CohortTrainer([trial("kd")], Mailbox(), environment())
    [first] = trainer.step()
    device.watts = None
    [second] = trainer.step()
    trainer.step()
    [result] = trainer.results.values()
    assert names.EPOCH_J in first.metrics
    assert names.EPOCH_J not in second.metrics
    assert result.status == "finished"
    assert names.TRIAL_J not in result.metrics


def test_an_older_checkpoint_has_no_energy_of_the_epoch_it_is_in():
    running = Running(CPU)
    state = running.state((1.0, 2.0, 3.0, 40.0, 5.0))
    running.restore(state)
    assert running.spent == (1, 2, 3, 40, 5)
    running.restore({**state, "seconds": state["seconds"][:3]})
    assert running.spent[:3] == (1, 2, 3)
    assert math.isnan(running.spent[3])
