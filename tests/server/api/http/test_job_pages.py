"""GET /jobs and reports on the metrics port, over real HTTP: what is shown, and to whom."""

from __future__ import annotations

import asyncio
import http.client
import json
from urllib.parse import urlsplit
from wsgiref.util import setup_testing_defaults

import pytest
import pytest_asyncio
from support import tiny_checkpoints
from support.live_traffic import follow, submit
from support.running_server import running
from support.scripted_trainer import HANG, TRAIN, Harness, finish, say
from twofold_checkpoint.protocol.events import GateEvaluated
from twofold_server.api.http.job_pages import JobPages
from twofold_server.observability.metrics import Metrics
from twofold_server.security.authorization import Authorizer
from twofold_server.security.tokens import make_token


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory):
    """Run a server with a rejected job and a running one; call *then* with its address and the two ids."""
    root = tmp_path_factory.mktemp("pages")
    store, harness = tiny_checkpoints.make_store(root / "store", "a"), Harness(root)
    tokens, lines = {}, []
    for name, scopes in {"caller": ["predict"], "trainer": ["adapt"], "boss": ["admin"]}.items():
        tokens[name], line = make_token(name, scopes)
        lines.append(line)
    (root / "tokens.toml").write_text("\n".join(lines))

    judged = say(GateEvaluated(verdict="fail", reason="Worse."))
    harness.play(TRAIN, judged, finish("rejected", "It reads <script>alert(1)</script> worse than before."))
    async with running(store, trainer_python=harness.config.trainer.python) as server:
        over = await submit(server)
        await follow(server, over)

    async def play(asks, *, job=False, **settings):
        harness.play(TRAIN, HANG)
        async with running(store, trainer_python=harness.config.trainer.python, **settings) as server:
            made = [await submit(server)] if job else []
            return await asyncio.to_thread(asks, urlsplit(server.metrics_url).netloc, *made)

    return play, over, tokens, root / "tokens.toml"


def ask(address, path, method="GET", **headers):
    """Request a page; return its status, headers and content."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


async def test_what_is_shown(scene):
    """The index lists the job with its verdict, its report is available in both formats, and metrics are unchanged."""
    play, over, _, _ = scene

    def asks(address):
        return [
            ask(address, path)
            for path in ("/jobs", f"/jobs/{over}/report", f"/jobs/{over}/report.html", f"/jobs/{over}/report.json")
        ] + [ask(address, "/metrics"), ask(address, "/"), ask(address, "/jobs", "HEAD")]

    index, page, html, data, metrics, anywhere, head = await play(asks)

    assert {item[0] for item in (index, page, html, data, metrics, anywhere, head)} == {200}
    assert f'href="/jobs/{over}/report"' in index[2]
    assert "REJECTED" in index[2]
    assert "<script" not in index[2]
    assert "&lt;script&gt;" in index[2]
    assert page[2] == html[2]
    assert over in page[2]
    assert json.loads(data[2])["job_id"] == over
    assert data[1]["Content-Type"] == "application/json"
    assert "twofold_ready" in metrics[2]
    assert "twofold_ready" in anywhere[2]
    assert head[2] == ""
    assert int(head[1]["Content-Length"]) == len(index[2].encode())
    for _, headers, _ in (index, page, data):
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


async def test_unknown_paths(scene):
    """Any other path is a 404 that lists the existing paths."""
    play, over, _, _ = scene
    paths = [
        "/jobs/none/report",
        "/jobs/../jobs/none/report",
        "/jobs/%2e%2e/report.json",
        "/jobs/..%2f..%2faliases.json/report",
        f"/jobs/{over}/report.txt",
        f"/jobs/{over}/job.json",
        f"/jobs/{over}",
        f"/jobs/{over}%00/report",
        f"/jobs/{over}/report.json/",
        "/jobs/" + "a" * 5000 + "/report",
    ]

    actual = await play(lambda address: [ask(address, path) for path in paths])

    assert [status for status, _, _ in actual] == [404] * len(paths)
    assert "there is no job 'none'" in actual[0][2]
    assert all(
        "there is no" in text and headers["Content-Type"].startswith("text/plain") for _, headers, text in actual
    )


async def test_a_job_that_is_not_over(scene):
    """An unfinished job is in the index without a link, and its report is a 404 that says when it will exist."""
    play, _, _, _ = scene

    index, page, job = await play(
        lambda address, job: (ask(address, "/jobs"), ask(address, f"/jobs/{job}/report"), job), job=True
    )

    assert job in index[2]
    assert f'href="/jobs/{job}/report"' not in index[2]
    assert page[0] == 404
    assert "has no report yet; wait until WatchJob shows that it ended" in page[2]


async def test_older_jobs(scene):
    """The index continues at the requested position, and ignores an invalid one."""
    play, over, _, _ = scene
    queries = ("before=1", "before=" + "9" * 30, "before=x", "other=1")

    none, *all_ = await play(lambda address: [ask(address, f"/jobs?{query}") for query in queries])

    assert "There are no jobs yet" in none[2]
    assert all(status == 200 and over in text for status, _, text in all_)


TOKENS = [(None, 401), ("wrong", 401), ("caller", 403), ("trainer", 200), ("boss", 200)]


async def test_with_tokens(scene):
    """With tokens, the scopes adapt and admin see jobs, others learn which scope they lack, and metrics need no token."""
    play, over, tokens, file = scene

    def asks(address):
        actual = {}
        for name, _ in TOKENS:
            headers = {} if name is None else {"Authorization": f"Bearer {tokens.get(name, name)}"}
            actual[name] = [ask(address, path, **headers) for path in ("/jobs", f"/jobs/{over}/report.json")]
        return actual, ask(address, "/metrics")

    actual, metrics = await play(asks, tokens=file)

    assert {name: {answer[0] for answer in answers} for name, answers in actual.items()} == {
        name: {status} for name, status in TOKENS
    }
    assert actual[None][0][1]["WWW-Authenticate"] == "Bearer"
    assert "needs 'adapt' or 'admin'" in actual["caller"][0][2]
    assert over not in "".join(text for name in (None, "wrong", "caller") for _, _, text in actual[name])
    assert metrics[0] == 200


HOSTS = [
    ("localhost:9500", 200),
    ("127.0.0.1", 200),
    ("[::1]:9500", 200),
    ("evil.example", 403),
    ("evil.example:9500", 403),
]


async def test_without_tokens_only_this_machine_by_its_name(scene):
    """Without tokens, a request with a foreign Host header (DNS rebinding) is rejected."""
    play, over, _, _ = scene

    actual = await play(lambda address: [ask(address, f"/jobs/{over}/report", Host=host) for host, _ in HOSTS])

    assert [status for status, _, _ in actual] == [status for _, status in HOSTS]
    assert "--tokens" in actual[-1][2]
    assert over not in actual[-1][2]


WAYS = [
    ("http", False, "10.1.2.3", 403),
    ("http", False, "::ffff:10.1.2.3", 403),
    ("http", False, "127.0.0.1", 401),
    ("http", False, "::1", 401),
    ("http", True, "10.1.2.3", 401),
    ("https", False, "10.1.2.3", 401),
]


@pytest.mark.parametrize(("scheme", "plaintext", "caller", "status"), WAYS)
async def test_over_a_network_nothing_travels_in_plaintext(scheme, plaintext, caller, status, scene):
    """Other machines get reports over TLS or explicit plaintext only; otherwise not even the token is checked."""
    *_, tokens = scene

    metrics = Metrics()
    pages = JobPages(None, None, Authorizer(tokens, metrics), plaintext=plaintext)
    environ = {"REMOTE_ADDR": caller, "wsgi.url_scheme": scheme, "PATH_INFO": "/jobs"}
    setup_testing_defaults(environ)
    statuses = []
    answer = pages.wrap(lambda *_: [b"metrics"])
    content = await asyncio.to_thread(answer, environ, lambda status, headers: statuses.append(status))
    [actual], message = statuses, b"".join(content).decode()

    assert int(actual.split()[0]) == status
    assert ("--metrics-tls" in message) == (status == 403)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_nothing_is_changed(scene, method):
    """Pages are read-only; other methods are rejected."""
    play, over, _, _ = scene

    assert (await play(lambda address: ask(address, f"/jobs/{over}/report", method)))[0] == 405
