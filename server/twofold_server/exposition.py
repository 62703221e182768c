"""The HTTP port: the metrics, and what else is put before them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

from prometheus_client import start_http_server

from twofold_server.metrics import Metrics

log = logging.getLogger(__name__)

_VERSION = re.compile(r"version=([^;,]*)")
_NUMBERS = re.compile(r"\d{1,3}(\.\d{1,3}){0,2}", re.ASCII)


def _nothing(metrics: WSGIApplication) -> WSGIApplication:
    return metrics


@contextmanager
def exposed(
    metrics: Metrics, listen: str, before: Callable[[WSGIApplication], WSGIApplication] = _nothing
) -> Iterator[str]:
    """Serve the metrics over HTTP until the block ends, *before* which other pages may come; gives the URL."""
    host, _, port = listen.rpartition(":")
    server, thread = start_http_server(int(port), addr=host.strip("[]"), registry=metrics.registry)
    if application := server.get_app():
        server.set_app(before(_tidied(application)))
    server.handle_error = _note  # type: ignore[assignment, method-assign] # It would print a traceback to stderr.
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tidied(metrics: WSGIApplication) -> WSGIApplication:
    """Answer as if nothing special were accepted if a version in it is none.

    prometheus_client compares the version and repeats it in its answer, whatever it is.
    """

    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        accepted = environ.get("HTTP_ACCEPT", "")
        known = all(_NUMBERS.fullmatch(version) for version in _VERSION.findall(accepted))
        return metrics({**environ, "HTTP_ACCEPT": accepted if known else ""}, start)

    return answer


def _note(request: Any, address: Any) -> None:  # noqa: ARG001 -- what socketserver passes.
    """Log that a caller was not answered, most often because it has left."""
    log.info("a caller of the metrics port was not answered", extra={"reason": type(sys.exception()).__name__})
