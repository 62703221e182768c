"""The metrics port and misbehaving clients."""

from __future__ import annotations

import logging
import socket
import struct
import time
import urllib.request

import pytest
from twofold_server.api.http.server import serve_http
from twofold_server.observability.metrics import Metrics

PATIENCE = 60


def test_a_broken_connection_logs_one_line(caplog, capfd):
    """A client that breaks the connection causes one log line and no traceback, and the port keeps serving."""
    caplog.set_level(logging.INFO)
    with serve_http(Metrics(), "127.0.0.1:0") as url:
        host, _, port = url.split("/")[2].rpartition(":")
        caller = socket.create_connection((host, int(port)), timeout=PATIENCE)
        caller.sendall(b"GET /metrics HTTP/1.1\r\n")
        caller.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # Closing resets the connection.
        caller.close()
        until = time.monotonic() + PATIENCE
        while not caplog.records and time.monotonic() < until:
            time.sleep(0.01)

        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            assert response.status == 200

    assert [record.getMessage() for record in caplog.records] == ["a client of the metrics port was not answered"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rest", [b"\r\n folded: header", b"\x01", b"\x7f", b"x", b"..", b""])
def test_an_invalid_http_version_is_answered(rest, capfd):
    """An invalid HTTP version is not repeated in the answer."""
    request = b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0" + rest + b"\r\n\r\n"
    with serve_http(Metrics(), "127.0.0.1:0") as url:
        host, _, port = url.split("/")[2].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as caller:
            caller.sendall(request)
            answer = b"".join(iter(lambda: caller.recv(65536), b""))

    assert answer.split()[1] == b"200"
    assert capfd.readouterr().err == ""
