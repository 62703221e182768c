"""Memory, utilization and power of the GPUs, read from NVIDIA's management library (NVML) at every scrape."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from prometheus_client import Gauge

from twofold_server.observability.metrics import Metrics

try:
    import pynvml as nvml
except ImportError:  # It is of no use without a GPU.
    nvml = None

log = logging.getLogger(__name__)


def show_gpus(metrics: Metrics) -> int:
    """Let the gauges of GPUs say what each is doing, and return how many there are.

    They are the machine's, or the container's, whoever uses them. Without the package nvidia-ml-py, a driver or a GPU there
    is none, which is the ordinary case and no news: the log says why at `debug`. What a GPU does not tell is NaN.
    """
    if nvml is None:
        log.debug("no figures of GPUs", extra={"reason": "the package nvidia-ml-py is not installed"})
        return 0
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        log.debug("no figures of GPUs", extra={"reason": str(error)})
        return 0

    def show(gauge: Gauge, question: Callable[[Any], float], handle: Any, *labels: str) -> None:
        def answer() -> float:
            try:
                return question(handle)
            except nvml.NVMLError:  # Not every GPU tells everything, and one may be lost.
                return math.nan

        gauge.labels(*labels).set_function(answer)

    for number, handle in enumerate(handles):
        gpu = str(number)
        show(metrics.gpu_memory, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used, handle, gpu, "used")
        show(metrics.gpu_memory, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).total, handle, gpu, "total")
        show(metrics.gpu_utilization, lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100, handle, gpu)
        show(metrics.gpu_power, lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000, handle, gpu)
    return len(handles)
