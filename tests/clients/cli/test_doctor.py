"""`twofold doctor`: its checks and its fixes."""

import json
import re
import socket
import threading
from dataclasses import replace
from importlib.metadata import version

import grpc
import pytest
from twofold._channel import Endpoint
from twofold.cli._checks import State, _check_tls, are_compatible, check_server
from twofold.testing import _MODEL, FakeServer

VERSION = version("twofold")


@pytest.fixture
def server():
    """Run a fake server of the client's own version."""
    with FakeServer(model=replace(_MODEL, server_version=VERSION)) as running:
        yield running


def checks_of(target, **terms):
    """Return the checks of a server by their names."""
    return {check.name: check for check in check_server(Endpoint(target=target, **terms), 10.0)}


def test_a_healthy_server(server):
    """All checks pass, and there is nothing to fix."""
    checks = checks_of(server.target)

    assert list(checks) == ["connection", "tls", "health", "checkpoint", "versions", "token"]
    assert {check.state for check in checks.values()} == {State.OK}
    assert {check.fix for check in checks.values()} == {""}
    assert "first is live" in checks["checkpoint"].message
    assert checks["versions"].message == f"client {VERSION}, server {VERSION}: compatible"
    assert checks["token"].message == "calls without a token have scopes predict and adapt; admin was not tested"


def test_only_reads(server):
    """The doctor makes no call that changes the server."""
    checks_of(server.target)

    assert {request.rpc for request in server.requests} == {"GetModel", "ListJobs"}


def test_no_server():
    """If nothing listens at the target, the connection is the only check."""
    checks = checks_of("127.0.0.1:1")

    assert list(checks) == ["connection"]
    assert checks["connection"].state is State.FAILED
    assert "Start a server" in checks["connection"].fix


def test_another_program():
    """A port of another program accepts connections and fails every call."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close_connections():
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=close_connections, daemon=True).start()
        checks = checks_of(f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)

    assert list(checks) == ["connection", "tls", "grpc"]
    assert checks["grpc"].state is State.FAILED
    assert "set --tls" in checks["grpc"].fix


def test_not_serving(server):
    """A server that runs and does not serve fails the health check."""
    server.serving = False

    assert checks_of(server.target)["health"].state is State.FAILED


FAULTS = [
    ("GetModel", grpc.StatusCode.UNAVAILABLE, "NOT_READY", {"checkpoint": State.FAILED}, "twofold promote"),
    ("GetModel", grpc.StatusCode.PERMISSION_DENIED, "", {"checkpoint": State.FAILED, "token": State.WARNING}, "scope"),
    ("ListJobs", grpc.StatusCode.PERMISSION_DENIED, "", {"token": State.WARNING}, "To adapt, set --token"),
]


@pytest.mark.parametrize(("rpc", "code", "reason", "states", "fix"), FAULTS)
def test_faults(server, *, rpc, code, reason, states, fix):
    """A fault is reported by the check that it belongs to, with its fix, and the token is never printed."""
    server.fail_next(code, rpc=rpc, reason=reason, times=9)
    checks = checks_of(server.target, token="secret")

    assert {name: check.state for name, check in checks.items() if check.state is not State.OK} == states
    assert any(fix in check.fix for check in checks.values())
    assert not any("secret" in check.message + check.fix for check in checks.values())


VERSIONS = [
    ("0.1.0", "0.1.9", True),
    ("0.1.0", "0.2.0", False),
    ("1.0.0", "1.9.0", True),
    ("1.9", "2.0", False),
    ("0.1.0", "", None),
    ("0.1.0", "fake", None),
]


@pytest.mark.parametrize(("client", "server", "expected"), VERSIONS)
def test_compatible_versions(client, server, expected):
    """The same major version is compatible, before 1.0 the same minor version; without numbers it is unknown."""
    assert are_compatible(client, server) is expected


@pytest.mark.parametrize(("theirs", "state"), [("99.0.0", State.FAILED), ("", State.WARNING)])
def test_another_version(theirs, state):
    """A server of an incompatible version is a failure with what to install; one without a version is a warning."""
    with FakeServer(model=replace(_MODEL, server_version=theirs)) as running:
        check = checks_of(running.target)["versions"]

    assert check.state is state
    assert ("twofold==99.0.*" in check.fix) is (state is State.FAILED)


def test_plaintext_to_another_machine():
    """An unencrypted connection to another machine is a warning."""
    assert _check_tls(Endpoint(target="example.org:1", plaintext=True), 1).state is State.WARNING


def test_output(run, server):
    """Exit 0 if all checks pass, otherwise 1; one JSON line for each check, or one line for a person with the fix below."""
    healthy = run("doctor", "--json")
    server.serving = False
    result = run("doctor", terminal=True)
    output = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)

    assert (healthy.exit_code, result.exit_code) == (0, 1)
    assert {json.loads(line)["state"] for line in healthy.stdout.splitlines()} == {"ok"}
    assert "✓ connection" in output
    assert "✗ health      not serving\n  → Read the server's log" in output


def test_with_a_store(run, tmp_path):
    """With --store the server's own checks of this machine follow those of the server."""
    result = run("doctor", "--json", "--store", str(tmp_path / "none"))
    checks = {check["name"]: check for check in map(json.loads, result.stdout.splitlines())}

    assert result.exit_code == 1
    assert checks["providers"]["state"] == "ok"
    assert "twofold-trainer init" in checks["store"]["fix"]
    assert [name for name, check in checks.items() if check["state"] == "failed"] == ["store"]
