"""The HTTP port: metrics, and the pages that wrap them."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication

from prometheus_client import make_wsgi_app

from twofold_server.observability.metrics import Metrics
from twofold_server.security.tls import Certificates

log = logging.getLogger(__name__)

_VERSION = re.compile(r"version=([^;,]*)")
_NUMBERS = re.compile(r"\d{1,3}(\.\d{1,3}){0,2}", re.ASCII)


def _only_metrics(metrics: WSGIApplication) -> WSGIApplication:
    return metrics


@contextmanager
def serve_http(
    metrics: Metrics,
    listen: str,
    wrap: Callable[[WSGIApplication], WSGIApplication] = _only_metrics,
    certificates: Certificates | None = None,
) -> Iterator[str]:
    """Serve the metrics over HTTP until the block ends, and yield the URL. *wrap* adds other pages.

    With *certificates* it is HTTPS. Raises OSError or ValueError if the address or a file is invalid.
    """
    host, _, port = listen.rpartition(":")
    server = _Server(host.strip("[]"), int(port), certificates)
    server.set_app(wrap(_sanitize_accept(make_wsgi_app(metrics.registry))))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificates else 'http'}://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with one thread per connection."""

    daemon_threads = True

    def __init__(self, host: str, port: int, certificates: Certificates | None) -> None:
        self._certificates = certificates
        self._context = certificates.context() if certificates else None
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        super().__init__((host, port), _Handler)
        # Pages read the scheme of the URL, which the standard library takes from this variable, as CGI did.
        self.base_environ["HTTPS"] = "on" if certificates else "off"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._certificates and self._context:
            self._context = self._certificates.context_if_changed() or self._context
            # The handshake runs with the first read on this connection's thread, so that a slow client blocks no other client.
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 -- what socketserver passes.
        """Log an unanswered client, which usually has disconnected, without a traceback on stderr."""
        log.info("a client of the metrics port was not answered", extra={"reason": type(sys.exception()).__name__})


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name in the standard library.
        """Keep request paths out of the log."""


def _sanitize_accept(metrics: WSGIApplication) -> WSGIApplication:
    """Wrap the metrics app: an Accept header with an invalid version becomes empty.

    prometheus_client compares the version, and copies it into its response without a check.
    """

    def answer(environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        accepted = environ.get("HTTP_ACCEPT", "")
        valid = all(_NUMBERS.fullmatch(version) for version in _VERSION.findall(accepted))
        return metrics({**environ, "HTTP_ACCEPT": accepted if valid else ""}, start)

    return answer
