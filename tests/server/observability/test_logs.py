"""Log lines: one JSON object each."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_checkpoints
from support.running_server import running
from twofold.v1 import checkpoints_pb2
from twofold_server.observability.logs import JsonFormatter
from twofold_server.testing import serving


def line(message, *args, caplog, **kwargs):
    """Log once, format the record as a line, and parse it."""
    logging.getLogger("twofold_server.test").error(message, *args, **kwargs)
    text = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in text
    return json.loads(text)


def test_a_line_holds_time_level_and_message(caplog):
    """The message is formatted, the level is in lower case, and the time is in UTC."""
    actual = line("%s of\n%d", "one", 2, caplog=caplog)

    assert (actual["level"], actual["message"], actual["logger"]) == ("error", "one of\n2", "twofold_server.test")
    assert actual["time"].endswith("+00:00")


def test_extra_fields_stand_beside_the_message(caplog):
    """Extra fields are in the line, even if JSON has no form for them."""
    actual = line("promoted", extra={"checkpoint": "a", "path": Path("x"), "seconds": 0.5}, caplog=caplog)

    assert (actual["checkpoint"], actual["path"], actual["seconds"]) == ("a", "x", 0.5)


def test_an_exception_leaves_its_traceback(caplog):
    """The traceback is one field of the line."""
    try:
        {}["gone"]
    except KeyError:
        actual = line("failed", exc_info=True, caplog=caplog)

    assert "KeyError: 'gone'" in actual["traceback"]


@pytest.fixture
def written():
    """The log lines as they are written during calls."""
    lines = []

    class Keeping(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(JsonFormatter().format(record)))

    log, handler = logging.getLogger("twofold_server"), Keeping()
    level = log.level
    log.setLevel("INFO")
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)


WORDS = "words of a caller"
SENT = [
    ((("x-request-id", "order-7.a_B"),), "order-7\\.a_B"),
    ((("x-request-id", WORDS),), "[0-9a-f]{16}"),
    ((("x-request-id", "a" * 101),), "[0-9a-f]{16}"),
    ((("x-request-id", ""),), "[0-9a-f]{16}"),
    ((("x-request-id-bin", b"\xff"),), "[0-9a-f]{16}"),
    ((), "[0-9a-f]{16}"),
]


@pytest.mark.parametrize(("metadata", "expected"), SENT)
async def test_the_lines_of_a_call_have_its_id(metadata, expected, store, written):
    """All lines of a call have the caller's request id, or a generated one if that is invalid."""
    async with running(store) as server:
        for name in ("b", "a"):
            request = checkpoints_pb2.PromoteCheckpointRequest(checkpoint=name)
            await server.checkpoints.PromoteCheckpoint(request, metadata=metadata if name == "b" else None)

    of = {
        name: [
            line.get("request") for line in written if line.get("checkpoint") == name and "promote" in line["message"]
        ]
        for name in "ab"
    }
    assert [len(of[name]) for name in "ab"] == [2, 2]  # What was done, and the audit.
    (mine,), (theirs,) = set(of["b"]), set(of["a"])
    assert re.fullmatch(expected, mine)
    assert theirs != mine
    assert all("request" not in line for line in written if line["message"] in {"listening", "draining"})
    assert WORDS not in json.dumps(written)


def test_the_audit_is_written_whatever_the_level():
    """At level `error`, audit lines are written and other lines below it are not."""
    code = (
        "import logging; from twofold_server.observability.logs import log_to_stderr; log_to_stderr('error');"
        "[logging.getLogger(f'twofold_server.{name}').info(name) for name in ('audit', 'app')]"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert [json.loads(line)["message"] for line in ended.stderr.splitlines()] == ["audit"]


def test_what_a_peer_says_who_hangs_up_is_not_logged(tmp_path):
    """GRPC's core would print the text of a GOAWAY frame; the log stays JSON, without that text."""
    goodbye = b"words of a caller"
    settings, ping, heard = (
        b"\0\0\0\x04\0\0\0\0\0",
        b"\0\0\x08\x06\0\0\0\0\0" + bytes(8),
        b"\0\0\x08\x06\x01\0\0\0\0" + bytes(8),
    )
    goaway = (8 + len(goodbye)).to_bytes(3, "big") + b"\x07\0\0\0\0\0" + bytes(7) + b"\x01" + goodbye
    with serving(
        tiny_checkpoints.make_store(tmp_path / "store", "a").root, log=tmp_path / "log", patience=180
    ) as server:
        host, _, port = server.target.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as peer:
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + goaway + ping)
            answered = b""
            while heard not in answered and (more := peer.recv(4096)):  # Frames are read in order.
                answered += more

    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert goodbye.decode() not in "\n".join(lines)
    assert {json.loads(line)["level"] for line in lines} <= {"info", "warning"}
