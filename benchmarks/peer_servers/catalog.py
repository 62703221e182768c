"""The peers, and the settings that are tried for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Axis = Sequence[Mapping[str, Any]]
"""Alternative settings; a search starts with the first."""

HOME = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class PeerServer:
    """A peer. Its folder holds requirements.txt and serve.py, whose docstring gives the sources of its settings."""

    protocol: str
    """Protocol of the load generator."""
    axes: Sequence[Axis]
    """The search tries one axis after another, each with the best settings so far."""
    python: str | None = None
    """Interpreter of its environment, if not the current one."""


# One copy of the model on both cores, with sleeping or spinning threads; one copy per core; and more threads than cores,
# because none of these servers keeps its threads busy all the time.
_COPIES: Axis = (
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
    {"workers": 1, "threads": 2, "spinning": True},
    {"workers": 2, "threads": 2},
)
_BATCHES: Axis = ({"batch": 16}, {"batch": 32}, {"batch": 64}, {"batch": 8})
_WAITS: Axis = ({"wait_ms": 2.0}, {"wait_ms": 0.5})
# The model in the server's process, in its event loop or in a separate thread; and in worker processes.
_MLSERVER_COPIES: Axis = (
    {"workers": 0, "threads": 2, "offload": True},
    {"workers": 0, "threads": 2},
    {"workers": 0, "threads": 2, "spinning": True},
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
)

PEER_SERVERS: Mapping[str, PeerServer] = {
    "litserve": PeerServer("http", (_COPIES, _BATCHES, _WAITS)),
    "bentoml": PeerServer("http", (_COPIES, _BATCHES)),  # It adapts the waiting time itself.
    "mlserver": PeerServer("open_inference", (_MLSERVER_COPIES, _BATCHES, _WAITS)),
    "ray_serve": PeerServer("http", (_COPIES, _BATCHES, _WAITS)),
    "pytriton": PeerServer(
        "open_inference",
        (_COPIES, _BATCHES, ({"wait_ms": 2.0}, {"wait_ms": 0.0})),
        python="/usr/bin/python3.11",
    ),
}
