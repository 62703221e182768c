"""MLServer, as its pages on adaptive batching and parallel inference set it up for throughput.

max_batch_size and max_batch_time switch the adaptive batcher on. parallel_workers is tried: 0 (the model in the server's own
process, which the page names for models that gain nothing from workers), 1, and 2. Without workers the model either holds
the event loop, as the page's examples do, or runs on one thread beside it; both are tried. No metrics endpoint, no debug
mode, log level ERROR. Callers use gRPC and the Open Inference Protocol.
uvloop stays at 0.21: workers of MLServer 1.7.1 end at once with a newer one ("no current event loop").

https://docs.seldon.ai/mlserver/user-guide/adaptive-batching
https://docs.seldon.ai/mlserver/user-guide/parallel-inference
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.peer_servers.settings import read_settings

if __name__ == "__main__":
    settings = read_settings()
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "grpc_port": settings.port,
        "http_port": settings.port + 1,
        "metrics_port": settings.port + 2,
        "metrics_endpoint": None,
        "metrics_dir": str(folder / "metrics"),
        "parallel_workers": settings.workers,
        "logging_settings": {
            "version": 1,
            "disable_existing_loggers": False,
            "root": {"level": "ERROR"},
            "loggers": {"mlserver": {"level": "ERROR"}},
        },
    }
    model = {
        "name": "twofold",
        "implementation": "runtime.TwoHeads",
        "max_batch_size": settings.batch,
        "max_batch_time": settings.wait_ms / 1000,
    }
    (folder / "settings.json").write_text(json.dumps(server), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    mlserver = str(Path(sys.executable).parent / "mlserver")
    os.execv(mlserver, [mlserver, "start", str(folder)])  # noqa: S606 -- the peer takes this process's place.
