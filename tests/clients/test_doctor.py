"""`twofold doctor`: what it finds, and what it says to do."""

import json
import re
import socket
import threading
from dataclasses import replace
from importlib.metadata import version

import grpc
import pytest
from click.testing import CliRunner
from twofold._channel import Endpoint
from twofold.cli._app import app
from twofold.cli._checks import State, _encryption, examine, fits
from twofold.testing import _MODEL, FakeServer

VERSION = version("twofold")


@pytest.fixture
def server():
    """Run a fake server of the client's own version."""
    with FakeServer(model=replace(_MODEL, server_version=VERSION)) as running:
        yield running


def found(target, **terms):
    """Return the checks of a server by their names."""
    return {one.name: one for one in examine(Endpoint(target=target, **terms), 10.0)}


def test_a_server_that_is_well(server):
    """Everything is looked at, and nothing is to do."""
    checks = found(server.target)

    assert list(checks) == ["reach", "tls", "health", "checkpoint", "versions", "token"]
    assert {one.state for one in checks.values()} == {State.OK}
    assert {one.todo for one in checks.values()} == {""}
    assert "first answers" in checks["checkpoint"].said
    assert checks["versions"].said == f"client {VERSION}, server {VERSION}: they fit"
    assert checks["token"].said == "without a token you may predict and adapt; admin is not tried"


def test_it_changes_nothing(server):
    """The doctor asks, and calls nothing that would change the server."""
    found(server.target)

    assert {one.rpc for one in server.requests} == {"GetModel", "ListJobs"}


def test_nobody_there():
    """Where nothing listens, that is all there is to say."""
    checks = found("127.0.0.1:1")

    assert list(checks) == ["reach"]
    assert (checks["reach"].state, "Start one there" in checks["reach"].todo) == (State.FAILED, True)


def test_somebody_else():
    """A port of something else takes connections and no calls."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up():
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        checks = found(f"127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)

    assert list(checks) == ["reach", "tls", "grpc"]
    assert checks["grpc"].state is State.FAILED
    assert "give --tls" in checks["grpc"].todo


def test_not_serving(server):
    """A server that is up and does not serve fails by its health."""
    server.serving = False

    assert found(server.target)["health"].state is State.FAILED


FAULTS = [
    ("GetModel", grpc.StatusCode.UNAVAILABLE, "NOT_READY", {"checkpoint": State.FAILED}, "twofold promote"),
    ("GetModel", grpc.StatusCode.PERMISSION_DENIED, "", {"checkpoint": State.FAILED, "token": State.WARNING}, "scope"),
    ("ListJobs", grpc.StatusCode.PERMISSION_DENIED, "", {"token": State.WARNING}, "To adapt, give a token"),
]


@pytest.mark.parametrize(("rpc", "code", "reason", "states", "todo"), FAULTS)
def test_faults(server, *, rpc, code, reason, states, todo):
    """A fault is told by the check that it belongs to, with what to do."""
    server.fail_next(code, rpc=rpc, reason=reason, times=9)
    checks = found(server.target, token="secret")

    assert {name: one.state for name, one in checks.items() if one.state is not State.OK} == states
    assert any(todo in one.todo for one in checks.values())
    assert not any("secret" in one.said + one.todo for one in checks.values())


VERSIONS = [
    ("0.1.0", "0.1.9", True),
    ("0.1.0", "0.2.0", False),
    ("1.0.0", "1.9.0", True),
    ("1.9", "2.0", False),
    ("0.1.0", "", None),
    ("0.1.0", "fake", None),
]


@pytest.mark.parametrize(("client", "server", "expected"), VERSIONS)
def test_versions(client, server, expected):
    """The same major version fits, before 1.0 the same minor one; without numbers nobody knows."""
    assert fits(client, server) is expected


@pytest.mark.parametrize(("theirs", "state"), [("99.0.0", State.FAILED), ("", State.WARNING)])
def test_another_version(theirs, state):
    """A server of another version is a failure with what to install; one that says none is a warning."""
    with FakeServer(model=replace(_MODEL, server_version=theirs)) as running:
        check = found(running.target)["versions"]

    assert check.state is state
    assert ("twofold==99.0.*" in check.todo) is (state is State.FAILED)


def test_plaintext_to_another_machine_is_warned_of():
    """What travels unencrypted off this machine is said."""
    assert _encryption(Endpoint(target="example.org:1", plaintext=True), 1).state is State.WARNING


def run(server, *args, **env):
    """Run the command."""
    return CliRunner().invoke(app, ["doctor", *args], env={"TWOFOLD_TARGET": server.target, **env})


def test_the_exit_code_and_the_lines(server):
    """Exit 0 if all is well and 1 if not; a line of JSON for each check, or one for a person with what to do below."""
    well = run(server, "--json")
    server.serving = False
    ill = re.sub(r"\x1b\[[\d;]*m", "", (told := run(server, FORCE_COLOR="1")).stdout)

    assert (well.exit_code, told.exit_code) == (0, 1)
    assert {json.loads(line)["state"] for line in well.stdout.splitlines()} == {"ok"}
    assert "✓ reach" in ill
    assert "✗ health      not serving\n  → See the server's log" in ill


def test_this_machine_too(server, tmp_path):
    """With --store the server's own checks of this machine come after those of the server that was asked."""
    result = run(server, "--json", "--store", str(tmp_path / "none"))
    checks = {one["name"]: one for one in map(json.loads, result.stdout.splitlines())}

    assert result.exit_code == 1
    assert checks["providers"]["state"] == "ok"
    assert "twofold-trainer init" in checks["store"]["todo"]
    assert [name for name, one in checks.items() if one["state"] == "failed"] == ["store"]
