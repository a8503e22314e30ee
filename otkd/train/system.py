"""How busy the machine is while a trial trains, under MLflow's names for its page "System metrics".

`cpu_…` and `system_memory_…` are of the whole machine, as MLflow defines them; `process_…` are of this worker alone,
where 100 % is one busy core. A GPU is `gpu_0`, the worker's own; others are not its business. GPUs are read by NVIDIA's
library; where it refuses, a run has no figures of its GPU.
"""

from __future__ import annotations

import logging
from typing import Any

import psutil
import pynvml
import torch

from otkd.core import names

log = logging.getLogger("otkd")

MB = 1e6
"""MLflow counts megabytes, not MiB."""


class SystemMonitor:
    """Reads the system's counters; a reading takes well under a millisecond and needs no thread.

    Args:
        device: where the trial trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._process = psutil.Process()
        self._gpu = gpu_handle(device) if device.type == "cuda" else None
        self._seen = 0
        """Time of the newest sample of the GPU that was read, in microseconds of its driver."""
        self.read()  # rates are since the last reading

    def read(self) -> dict[str, float]:
        """Rates since the last reading, memory as it is now; by metric name."""
        memory = psutil.virtual_memory()
        figures = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / MB,
        }
        return {names.SYSTEM + name: round(value, 1) for name, value in (figures | self._gpu_figures()).items()}

    def _gpu_figures(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._gpu)
            return {
                "gpu_0_memory_usage_megabytes": memory.used / MB,
                "gpu_0_memory_usage_percentage": 100 * memory.used / memory.total,
                "gpu_0_utilization_percentage": self._gpu_utilisation(),
            }
        except pynvml.NVMLError as error:
            log.warning("the GPU's load cannot be read any more: %s", error)
            self._gpu = None
            return {}

    def _gpu_utilisation(self) -> float:
        """The mean of the driver's samples since the last reading (it keeps some seconds); else what it says now."""
        kind = pynvml.NVML_GPU_UTILIZATION_SAMPLES
        try:
            samples = pynvml.nvmlDeviceGetSamples(self._gpu, kind, self._seen)[1]
        except pynvml.NVMLError:  # none since, or a driver that keeps none
            samples = []
        if not len(samples):
            return float(pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu)
        self._seen = max(sample.timeStamp for sample in samples)
        return sum(sample.sampleValue.uiVal for sample in samples) / len(samples)


def gpu_handle(device: torch.device) -> Any:
    """NVIDIA's handle of a device of torch's, or None where there is none to be had."""
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        log.info("the GPU's load cannot be read, so none is recorded: %s", error)
        return None
