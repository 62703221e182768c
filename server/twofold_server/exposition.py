"""The Prometheus port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from twofold_server.metrics import Metrics


@contextmanager
def exposed(metrics: Metrics, listen: str) -> Iterator[str]:
    """Serve the metrics over HTTP until the block ends; gives the URL."""
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=metrics.registry)
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
