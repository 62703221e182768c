"""Bytes for a port that are not from a well-behaved gRPC client or browser."""

from __future__ import annotations

from random import Random

from fuzzing.values import MARK

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
_VERBS = (
    b"GET",
    b"GET",
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"CONNECT",
    b"BREW",
    b"",
    b"get",
    b"\xff\xfe",
)
_TARGETS = (
    b"/metrics",
    b"/metrics",
    b"/",
    b"/../../etc/passwd",
    b"/metrics?name[]=" + MARK.replace(" ", "%20").encode(),
    b"/metrics?name[]=" + b"x" * 60_000,
    b"/metrics?" + b"name[]=a&" * 2000,
    b"/%00%ff%2e%2e",
    b"http://elsewhere/metrics",
    b"*",
    b"/metrics#" + MARK.encode(),
    b"//" * 3000,
    "/é字".encode(),
    b"",
    *(b"/jobs" + rest for rest in (b"", b"", b"/", b"//", b"?before=1", b"?before=" + 18 * b"9", b"?before=-1")),
    b"/jobs?before=" + MARK.replace(" ", "+").encode(),
    b"/jobs?" + b"before=1&" * 2000,
    b"/jobs?before=%zz&before",
    *(
        b"/jobs/" + rest
        for rest in (b"report", b"/report", b"../report", b"%2e%2e/report.json", b"%00/report", b"-/report.html")
    ),
    b"/jobs/job-20260101T000000-00000000/report.json",
    b"/jobs/" + 100 * b"a" + b"/report",
    b"/jobs/" + MARK.replace(" ", "%20").encode() + b"/report",
)
_HOSTS = (
    *(b"127.0.0.1", b"127.0.0.1:9500", b"localhost", b"localhost:9500", b"[::1]:9500", b"[::1", b"127.0.0.1:99999"),
    *(b"elsewhere:9500", b"", b":", b"\xff", b"127.0.0.1:9500:9500", b"127.0.0.1 elsewhere", MARK.encode()),
)
_VERSIONS = (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"HTTP/x", b"", b"HTTP/2.0")
_HEADERS = (
    b"Accept: application/openmetrics-text; version=1.0.0",
    b"Accept: " + b"application/openmetrics-text;q=" * 500,
    b"Accept-Encoding: gzip",
    b"Accept-Encoding: " + b"gzip," * 3000,
    b"Content-Length: 99999999999",
    b"Content-Length: -1",
    b"Content-Length: " + MARK.encode(),
    b"Transfer-Encoding: chunked",
    b"Connection: keep-alive",
    b"Expect: 100-continue",
    b"X: " + b"y" * 70_000,
    b"no colon",
    b": no name",
    b"X-\0: \xff",
    b" folded: header",
    b"Authorization: Bearer " + MARK.encode(),
)


def http(chance: Random) -> list[bytes]:
    """Return the parts of an HTTP request, possibly incomplete."""
    if chance.random() < 0.1:
        return [chance.randbytes(chance.choice((0, 1, 100, 5000)))]
    line = b" ".join((chance.choice(_VERBS), chance.choice(_TARGETS), chance.choice(_VERSIONS)))
    headers = [b"Host: " + chance.choice(_HOSTS)] if chance.random() < 0.7 else []
    headers += [chance.choice(_HEADERS) for _ in range(chance.choice((0, 1, 2, 5, 120)))]
    raw = b"\r\n".join((line, *headers, b"", b"")) + chance.choice((b"", b"", b"0\r\n\r\n", MARK.encode()))
    if chance.random() < 0.15:
        raw = raw[: chance.randrange(len(raw) + 1)]
    half = len(raw) // 2
    return chance.choice(([raw], [raw], [raw[:half], raw[half:]], [raw, raw]))


def http2(chance: Random) -> list[bytes]:
    """Return the HTTP/2 preface and frames, possibly invalid."""
    frames = b"".join(_frame(chance) for _ in range(chance.choice((1, 3, 30))))
    return [_PREFACE + chance.choice((_SETTINGS, b"")) + frames]


def _frame(chance: Random) -> bytes:
    content = chance.randbytes(chance.choice((0, 4, 5, 8, 6, 200)))
    length = chance.choice((len(content), len(content), len(content), 2**24 - 1))
    kind, flags, stream = chance.randrange(12), chance.randrange(256), chance.choice((0, 1, 1, 3, 2, 2**31 - 1))
    return length.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content
