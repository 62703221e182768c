"""GPU metrics: the library's values, or a reason in the log."""

import logging
import math

import pytest
from support.doubles import pynvml as double
from twofold_server.observability import gpu_metrics
from twofold_server.observability.metrics import Metrics


def value(metrics, name, **labels):
    """Return a metric as Prometheus reads it."""
    return metrics.registry.get_sample_value(name, labels)


def test_each_gpu_tells_what_it_does_when_it_is_asked(monkeypatch):
    """Each GPU has its memory in bytes, its utilisation as a share and its power in watts; unavailable values are NaN."""
    monkeypatch.setattr(gpu_metrics, "nvml", double)
    metrics = Metrics()

    assert gpu_metrics.export_gpu_metrics(metrics) == 2

    for gpu, used, busy in (("0", 1 << 30, 0.25), ("1", 2 << 30, 0.5)):
        assert value(metrics, "twofold_gpu_memory_bytes", gpu=gpu, kind="used") == used
        assert value(metrics, "twofold_gpu_memory_bytes", gpu=gpu, kind="total") == 80 << 30
        assert value(metrics, "twofold_gpu_utilization_ratio", gpu=gpu) == busy
    assert value(metrics, "twofold_gpu_power_watts", gpu="0") == pytest.approx(123.4)
    assert math.isnan(value(metrics, "twofold_gpu_power_watts", gpu="1"))

    def lost(handle):
        raise double.NVMLError(f"GPU {handle} is lost")

    monkeypatch.setattr(double, "nvmlDeviceGetMemoryInfo", lost)
    assert math.isnan(value(metrics, "twofold_gpu_memory_bytes", gpu="0", kind="used"))
    assert value(metrics, "twofold_gpu_utilization_ratio", gpu="0") == 0.25


def no_driver():
    """Fail as the library does without a driver."""
    raise double.NVMLError("Driver Not Loaded")


@pytest.mark.parametrize("reason", ["nvidia-ml-py", "Driver Not Loaded"])
def test_without_the_package_or_a_driver_there_are_none(monkeypatch, caplog, reason):
    """Without the package or a driver there are no metrics, and the log has the reason at level DEBUG."""
    monkeypatch.setattr(double, "nvmlInit", no_driver)
    monkeypatch.setattr(gpu_metrics, "nvml", None if reason == "nvidia-ml-py" else double)
    metrics = Metrics()

    with caplog.at_level(logging.DEBUG, "twofold_server"):
        assert gpu_metrics.export_gpu_metrics(metrics) == 0

    [record] = caplog.records
    assert record.levelname == "DEBUG"
    assert reason in record.reason
    assert value(metrics, "twofold_gpu_power_watts", gpu="0") is None


def test_the_real_library_has_all_that_is_asked_of_it():
    """The double has only names of the real library, which either works or fails in its own way."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py comes with the tests; without it there is no library")
    assert {name for name in vars(double) if name.startswith(("nvml", "NVML"))} <= vars(pynvml).keys()
    assert issubclass(pynvml.NVMLError, Exception)

    shown = gpu_metrics.export_gpu_metrics(Metrics())

    try:
        pynvml.nvmlInit()
        assert shown == pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        assert shown == 0
