"""Ray Serve, as its pages on performance tuning, dynamic request batching and high throughput set it up.

@serve.batch (max_batch_size, batch_wait_timeout_s), RAY_SERVE_THROUGHPUT_OPTIMIZED=1 and RAY_SERVE_ENABLE_HA_PROXY=1 (HAProxy
in front of the replicas instead of the Python proxy), max_ongoing_requests far above what is in flight, the access log off.
The model runs on a thread, as the page on asyncio says of code that computes: the replica's loop goes on taking requests,
and one batch is computed at a time. Replicas are tried: one with all cores against one for each core. No dashboard and no
usage reports. Callers use HTTP, as the pages on high throughput do; there is a gRPC ingress too, which was not tried.

https://docs.ray.io/en/latest/serve/advanced-guides/performance.html
https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html
https://docs.ray.io/en/latest/serve/advanced-guides/asyncio-best-practices.html
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

for name in ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY"):
    os.environ.setdefault(name, "1")
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})  # Loopback only.

import ray  # noqa: E402 -- it reads the environment when it is imported.
from ray import serve  # noqa: E402
from ray.serve.config import HTTPOptions  # noqa: E402
from ray.serve.schema import LoggingConfig  # noqa: E402
from starlette.requests import Request  # noqa: E402

from benchmarks.peer_servers.predictor import load_predictor  # noqa: E402
from benchmarks.peer_servers.settings import VARIABLE, read_settings  # noqa: E402

settings = read_settings()


@serve.deployment(
    num_replicas=settings.workers,
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 1},
    logging_config=LoggingConfig(enable_access_log=False, log_level="ERROR"),
)
class TwoHeads:
    """Answer batches of texts."""

    def __init__(self) -> None:
        self.predictor = load_predictor(settings)

    @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.wait_ms / 1000)
    async def predict(self, texts: list[str]) -> list[Any]:
        """Answer a batch."""
        return await asyncio.to_thread(self.predictor, texts)

    async def __call__(self, request: Request) -> list[Any]:
        """Answer a request of one text."""
        return [await self.predict((await request.json())["texts"][0])]


if __name__ == "__main__":
    variables = {name: value for name, value in os.environ.items() if name == VARIABLE or name.startswith("RAY_SERVE_")}
    ray.init(num_cpus=8, include_dashboard=False, runtime_env={"env_vars": variables}, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=settings.port))
    serve.run(TwoHeads.bind(), route_prefix="/predict", name="twofold")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    ray.shutdown()
