"""The settings of a peer's server: its port, its checkpoint, and the options that the search tries."""

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
    """Hold the settings. They are passed in the environment, which every process of the server inherits."""

    port: int
    checkpoint: str
    workers: int = 1
    """Copies of the model. Zero means one copy in the process of the front end, if a server supports it."""
    threads: int = 2
    """Threads of each copy's forward pass."""
    spinning: bool = False
    """Whether these threads spin between operators."""
    batch: int = 16
    """Maximum number of requests in a batch."""
    wait_ms: float = 2.0
    """Maximum time that an incomplete batch waits."""
    offload: bool = False
    """Whether the model runs in a separate thread from the event loop, if a server leaves the choice to the user."""

    def write(self) -> dict[str, str]:
        """Return the environment variable."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self))}


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment variable."""
    fields: dict[str, Any] = json.loads(environment[VARIABLE])
    return Settings(**fields)
