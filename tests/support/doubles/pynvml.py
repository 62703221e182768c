"""A fake of NVIDIA's management library with two GPUs, of which the second does not report its power."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    """The error that the real library raises."""


def nvmlInit() -> None:  # noqa: N802 -- the library's name, as all of these.
    """Initialise the library."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    """Return the number of GPUs."""
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """Return the handle of a GPU."""
    return index


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    """Return memory in bytes."""
    return SimpleNamespace(used=(handle + 1) << 30, total=80 << 30, free=(79 - handle) << 30)


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    """Return shares of time in per cent."""
    return SimpleNamespace(gpu=25 * (handle + 1), memory=5)


def nvmlDeviceGetPowerUsage(handle: int) -> int:  # noqa: N802
    """Return power in milliwatts."""
    if handle:
        raise NVMLError("Not Supported")
    return 123_400
