"""What a peer's server is told: where to listen, what to serve, and the settings that are tried."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VARIABLE = "PEER_SETTINGS"


@dataclass(frozen=True, slots=True)
class Settings:
    """Hold them. They travel in the environment, which every process that a server starts inherits."""

    port: int
    checkpoint: str
    workers: int = 1
    """Copies of the model. Zero means one, beside the front end in its process, where a server can do that."""
    threads: int = 2
    """Threads of each copy's forward pass."""
    spinning: bool = False
    """Whether those threads wait awake for the next operator."""
    batch: int = 16
    """Requests in a batch, at most."""
    wait_ms: float = 2.0
    """How long a batch that is not full waits for more, at most."""
    offload: bool = False
    """Whether the model runs on a thread beside the event loop, where a server leaves that to its user."""

    def write(self) -> dict[str, str]:
        """Return the environment variable."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment variable."""
    found: dict[str, Any] = json.loads(environment[VARIABLE])
    return Settings(**found)
