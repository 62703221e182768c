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
except ImportError:  # Optional: it is useful only with a GPU.
    nvml = None

log = logging.getLogger(__name__)


def show_gpus(metrics: Metrics) -> int:
    """Export gauges for each GPU, and return the number of GPUs.

    They cover all GPUs of the machine or container, for all processes. Without the package nvidia-ml-py, a driver or a GPU there
    are none; the reason is logged at `debug`. A value that a GPU does not report is NaN.
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
            except nvml.NVMLError:  # A GPU may not support a value, or may have failed.
                return math.nan

        gauge.labels(*labels).set_function(answer)

    for number, handle in enumerate(handles):
        gpu = str(number)
        show(metrics.gpu_memory, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).used, handle, gpu, "used")
        show(metrics.gpu_memory, lambda device: nvml.nvmlDeviceGetMemoryInfo(device).total, handle, gpu, "total")
        show(metrics.gpu_utilization, lambda device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100, handle, gpu)
        show(metrics.gpu_power, lambda device: nvml.nvmlDeviceGetPowerUsage(device) / 1000, handle, gpu)
    return len(handles)
