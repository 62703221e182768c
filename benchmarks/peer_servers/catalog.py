"""The peers, and which settings are tried for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Axis = Sequence[Mapping[str, Any]]
"""Settings that exclude each other; the first of them is what a search begins with."""

HOME = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Entrant:
    """One peer. Its folder holds serve.py, whose docstring says where its settings come from, and requirements.txt."""

    protocol: str
    """How callers speak to it."""
    axes: Sequence[Axis]
    """One after the other, each is tried with the best of those before it."""
    python: str | None = None
    """The interpreter that its environment is made of, if not ours."""


# One copy of the model with both cores, its threads asleep or awake between operators; one copy for each core; and more
# threads than cores, since none of these servers keeps its threads busy all the time.
_COPIES: Axis = (
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
    {"workers": 1, "threads": 2, "spinning": True},
    {"workers": 2, "threads": 2},
)
_BATCHES: Axis = ({"batch": 16}, {"batch": 32}, {"batch": 64}, {"batch": 8})
_WAITS: Axis = ({"wait_ms": 2.0}, {"wait_ms": 0.5})
# The model in the server's own process, on its event loop or on a thread beside it; and in processes of its own.
_MLSERVER_COPIES: Axis = (
    {"workers": 0, "threads": 2, "offload": True},
    {"workers": 0, "threads": 2},
    {"workers": 0, "threads": 2, "spinning": True},
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
)

ENTRANTS: Mapping[str, Entrant] = {
    "litserve": Entrant("http", (_COPIES, _BATCHES, _WAITS)),
    "bentoml": Entrant("http", (_COPIES, _BATCHES)),  # How long it waits, it finds out by itself.
    "mlserver": Entrant("open_inference", (_MLSERVER_COPIES, _BATCHES, _WAITS)),
    "ray_serve": Entrant("http", (_COPIES, _BATCHES, _WAITS)),
    "pytriton": Entrant(
        "open_inference",
        (_COPIES, _BATCHES, ({"wait_ms": 2.0}, {"wait_ms": 0.0})),
        python="/usr/bin/python3.11",
    ),
}
