"""BentoML, as its pages on adaptive batching, workers and configuration set it up for throughput.

A batchable API behind the adaptive dispatcher, which learns from the last batches how long waiting pays; max_batch_size is
tried, max_latency_ms stays at its default of a minute, since a lower one only cancels requests. Workers (processes, each with
its own dispatcher and model; recommended for a CPU: as many as it has cores) are tried against one with all cores. Access
log, metrics and tracing are off. uvloop and httptools are installed, which uvicorn then uses. Callers use HTTP: the API of
today's services has no gRPC.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html
https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml

from benchmarks.peer_servers.predictor import load_predictor
from benchmarks.peer_servers.settings import read_settings

settings = read_settings()


@bentoml.service(
    workers=settings.workers,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class TwoHeads:
    """Answer batches of texts."""

    def __init__(self) -> None:
        self.predictor = load_predictor(settings)

    @bentoml.api(batchable=True, max_batch_size=settings.batch, max_latency_ms=60_000)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Answer a batch."""
        return self.predictor(texts)


if __name__ == "__main__":
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    command = [sys.executable, "-m", "bentoml", "serve", "serve:TwoHeads", "--working-dir", str(Path(__file__).parent)]
    sys.exit(subprocess.call([*command, "--host", "127.0.0.1", "--port", str(settings.port)]))
