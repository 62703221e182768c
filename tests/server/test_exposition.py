"""The metrics port, and callers of it who do not behave."""

from __future__ import annotations

import logging
import socket
import struct
import time
import urllib.request

from twofold_server.exposition import exposed
from twofold_server.metrics import Metrics

PATIENCE = 60


def test_who_hangs_up_leaves_a_line_and_no_traceback(caplog, capfd):
    """A caller who breaks the connection in the middle is one line of the log; nothing is printed, and the port serves on."""
    caplog.set_level(logging.INFO)
    with exposed(Metrics(), "127.0.0.1:0") as url:
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

    assert [record.getMessage() for record in caplog.records] == ["a caller of the metrics port was not answered"]
    assert capfd.readouterr().err == ""
