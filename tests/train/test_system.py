"""The load of the machine, against the process's own counters; a GPU is played by a driver of ours."""

import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

from otkd.core import names
from otkd.sweep.runner import Mailbox
from otkd.train import fit, system
from otkd.train.system import SystemMonitor

CPU = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/process_cpu_percentage",
    "system/process_memory_megabytes",
}
CUDA = torch.device("cuda")


def test_a_busy_process_is_seen():
    monitor = SystemMonitor(torch.device("cpu"))
    wall, begin = time.perf_counter(), time.process_time()
    while time.process_time() - begin < 0.3:
        pass
    share = 100 * (time.process_time() - begin) / (time.perf_counter() - wall)
    busy = monitor.read()
    assert set(busy) == CPU
    assert busy["system/process_cpu_percentage"] == pytest.approx(share, rel=0.3)
    assert 20 < busy["system/process_memory_megabytes"] < busy["system/system_memory_usage_megabytes"] * 2
    time.sleep(0.2)
    assert monitor.read()["system/process_cpu_percentage"] < 50, "rates are since the last reading"


def test_every_epoch_has_it(environment, trial):
    [result] = fit([trial("kd")], Mailbox(), environment())
    assert all({name for name in record.metrics if name.startswith(names.SYSTEM)} == CPU for record in result.epochs)


@pytest.fixture
def driver(monkeypatch):
    """A GPU with samples of its load: (time, percent)."""
    card = SimpleNamespace(samples=[(10, 40), (20, 60)], lost=False)

    def get_samples(handle, kind, since):
        fresh = [(at, value) for at, value in card.samples if at > since]
        if not fresh:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return kind, [SimpleNamespace(timeStamp=at, sampleValue=SimpleNamespace(uiVal=value)) for at, value in fresh]

    def memory(handle):
        if card.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(used=2_000_000_000, total=8_000_000_000)

    monkeypatch.setattr(system, "gpu_handle", lambda device: "handle")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetSamples", get_samples)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=7))
    return card


def test_a_gpus_load_is_the_mean_since_the_last_reading(driver):
    monitor = SystemMonitor(CUDA)
    driver.samples += [(30, 80), (40, 90)]
    read = monitor.read()
    assert read["system/gpu_0_utilization_percentage"] == 85
    assert read["system/gpu_0_memory_usage_megabytes"] == 2000
    assert read["system/gpu_0_memory_usage_percentage"] == 25
    assert monitor.read()["system/gpu_0_utilization_percentage"] == 7, "no sample since: what the driver says now"


def test_a_gpu_that_is_lost_ends_no_training(driver, caplog):
    monitor = SystemMonitor(CUDA)
    driver.lost = True
    assert set(monitor.read()) == CPU
    assert set(monitor.read()) == CPU
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the GPU's load cannot be read any more"
    ]


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert set(SystemMonitor(CUDA).read()) == CPU
