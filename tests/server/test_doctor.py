"""Both doctors: `twofold-server doctor` on this machine, and TLS and tokens in `twofold doctor`."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from pathlib import Path

import pytest
import trustme
from server.security.test_tls import Files, issue, key_of, roots_of
from support.running_server import config_of
from support.server_command import run_command
from twofold import TLS
from twofold._channel import Endpoint
from twofold.cli import _checks as outside
from twofold_checkpoint import checkpoint as files
from twofold_server.app import serve
from twofold_server.config.schema import build_config
from twofold_server.doctor import run_checks
from twofold_server.security.tokens import make_token


def checks_of(config):
    """Return the checks by their names."""
    return {check.name: check for check in run_checks(config)}


def states(checks):
    """Return the checks that are not ok, with their states."""
    return {name: check.state for name, check in checks.items() if check.state != "ok"}


def test_a_machine_that_is_well(store):
    """With a valid store, a provider and a trainer all checks pass, and the store is unchanged."""
    before = sorted(store.root.rglob("*"))
    checks = checks_of(config_of(store))

    assert list(checks) == ["version", "providers", "tls", "trainer", "store", "current", "disk", "database"]
    assert states(checks) == {}
    assert "a is intact" in checks["current"].message
    assert sorted(store.root.rglob("*")) == before


def test_a_damaged_checkpoint(store):
    """A damaged current checkpoint fails, a damaged previous one is a warning; both have a fix."""
    store.promote("b")
    (store.root / "checkpoints" / "a" / files.GRAPH_WEIGHTS).write_bytes(b"short")
    checks = checks_of(config_of(store))
    assert states(checks) == {"previous": "warning"}
    assert files.GRAPH_WEIGHTS in checks["previous"].message

    (store.root / "checkpoints" / "b" / files.MANIFEST).unlink()
    checks = checks_of(config_of(store))
    assert states(checks) == {"current": "failed", "previous": "warning"}
    assert "promote another" in checks["current"].fix


def test_damaged_aliases(store):
    """An unreadable alias file fails, and so does a store without a current checkpoint."""
    (store.root / "aliases.json").write_text("{")
    assert states(checks_of(config_of(store))) == {"aliases": "failed"}
    (store.root / "aliases.json").unlink()
    assert states(checks_of(config_of(store))) == {"current": "failed"}


FAULTS = [
    ({"store": Path("no/such")}, "store", "failed", "twofold-trainer init"),
    ({"store": Path("/proc")}, "store", "failed", "Give user"),
    ({"trainer_python": "/no/such/python"}, "trainer", "warning", "--trainer-python"),
    ({"trainer_python": "/bin/false"}, "trainer", "warning", "Jobs will fail"),
    ({"device": "cuda"}, "providers", "failed", "--device cpu"),
    ({"tls_certificate": Path("no.pem"), "tls_key": Path("no.pem")}, "tls", "failed", "--tls-certificate"),
    ({"tokens": Path("no.toml")}, "tokens", "failed", "make-token"),
]


@pytest.mark.parametrize(("settings", "name", "state", "fix"), FAULTS)
def test_faults(store, *, settings, name, state, fix):
    """Each fault is reported by its check, with a fix."""
    if settings.get("device") == "cuda" and "CUDA" in checks_of(config_of(store))["providers"].message:
        pytest.skip("this onnxruntime has CUDA")
    config = build_config(**{"store": store.root, **settings})

    check = checks_of(config)[name]

    assert check.state == state
    assert fix in check.fix


def test_tokens(store, tmp_path):
    """The token file is read as the server reads it, and an empty one is a warning."""
    path = tmp_path / "tokens.toml"
    path.write_text("")
    assert states(checks_of(config_of(store, tokens=path))) == {"tokens": "failed"}
    path.write_text(make_token("me", ["predict"])[1])
    assert "1 in " in checks_of(config_of(store, tokens=path))["tokens"].message


def test_the_command(store, capsys, monkeypatch):
    """There is a line per check, or JSON on request; the exit code is 1 if a check fails, and a misspelt variable is a warning."""
    monkeypatch.setenv("TWOFOLD_STORR", "x")
    assert run_command("doctor", "--json", "--store", str(store.root)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["name"] for item in lines if item["state"] == "warning"] == ["settings"]

    assert run_command("doctor", "--store", "no/such", "--trainer-python", sys.executable) == 1
    assert "failed   store      no/such is not a directory\n         → Create" in capsys.readouterr().out


DAYS = [(90, outside.State.OK, ""), (3, outside.State.WARNING, "Renew the certificate")]


@pytest.mark.parametrize(("days", "state", "fix"), DAYS)
async def test_certificates_from_outside(store, tmp_path, *, days, state, fix):
    """`twofold doctor` reports how long the certificate is valid, and warns two weeks before its end."""
    authority, terms = trustme.CA(), {"not_after": dt.datetime.now(dt.UTC) + dt.timedelta(days=days)}
    checks = await examined(store, tmp_path, authority, TLS(root_certificates=roots_of(authority)), terms)

    assert (checks["tls"].state, checks["tls"].fix.startswith(fix)) == (state, True)
    assert f"{terms['not_after']:%Y-%m-%d}" in checks["tls"].message
    assert checks["health"].state is outside.State.OK


async def test_a_stranger_certificate_from_outside(store, tmp_path):
    """A certificate of another authority fails with a fix."""
    checks = await examined(store, tmp_path, trustme.CA(), TLS(root_certificates=roots_of(trustme.CA())), {})

    assert checks["tls"].state is outside.State.FAILED
    assert "--ca FILE" in checks["tls"].fix
    assert list(checks) == ["connection", "tls", "grpc"]


async def test_plaintext_to_tls_is_reported(store, tmp_path):
    """Plaintext to a server with TLS fails with a fix."""
    checks = await examined(store, tmp_path, trustme.CA(), None, {})

    assert "--tls or --ca FILE" in checks["grpc"].fix


async def test_mutual_tls_from_outside(store, tmp_path):
    """With mutual TLS and a client certificate, all checks work."""
    authority, callers = trustme.CA(), trustme.CA()
    own = issue(callers, "me")
    chain = b"".join(pem.bytes() for pem in own.cert_chain_pems)
    tls = TLS(root_certificates=roots_of(authority), certificate=chain, private_key=key_of(own))
    checks = await examined(store, tmp_path, authority, tls, {}, client_ca=roots_of(callers))

    assert {check.state for check in checks.values()} == {outside.State.OK}
    checks = await examined(
        store, tmp_path, authority, TLS(root_certificates=roots_of(authority)), {}, client_ca=roots_of(callers)
    )
    assert "--certificate FILE" in checks["grpc"].fix


async def examined(store, folder, authority, tls, terms, *, client_ca=None):
    """Run a server with TLS and return the checks from outside."""
    written = Files(folder)
    written.issue(authority, **terms)
    written.write(client_ca=client_ca)
    settings = {"tls_certificate": folder / "cert.pem", "tls_key": folder / "key.pem"}
    if client_ca:
        settings["tls_client_ca"] = folder / "ca.pem"
    async with serve(config_of(store, **settings)) as serving:
        endpoint = Endpoint(target=serving.target, tls=tls)
        return await asyncio.to_thread(lambda: {check.name: check for check in outside.check_server(endpoint, 20.0)})
