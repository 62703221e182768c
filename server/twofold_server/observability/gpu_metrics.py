"""Memory, utilization and power of the GPUs, read from NVIDIA's management library (NVML) at every scrape."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import Gauge

from twofold_server.observability.metrics import Metrics

try:
    import pynvml as nvml
except ImportError:  # Optional: it is useful only with a GPU.
    nvml = None

log = logging.getLogger(__name__)


def export_gpu_metrics(metrics: Metrics) -> int:
    """Export gauges for each GPU, and return the number of GPUs.

    They cover all GPUs of the machine or container, for all processes. Without the package nvidia-ml-py, a
    driver or a GPU there are none; the reason is logged at `debug`. A value that a GPU does not report is NaN.
    """
    if nvml is None:
        log.debug("GPU metrics are not available", extra={"reason": "the package nvidia-ml-py is not installed"})
        return 0
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        log.debug("GPU metrics are not available", extra={"reason": str(error)})
        return 0

    def export(gauge: Gauge, read: Callable[[Any], float], *kinds: str) -> None:
        def value(handle: Any) -> float:
            try:
                return read(handle)
            except nvml.NVMLError:  # A GPU may not support a value, or may have failed.
                return math.nan

        for number, handle in enumerate(handles):
            gauge.labels(str(number), *kinds).set_function(partial(value, handle))

    export(metrics.gpu_memory, lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used, "used")
    export(metrics.gpu_memory, lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total, "total")
    export(metrics.gpu_utilization, lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
    export(metrics.gpu_power, lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
    return len(handles)
