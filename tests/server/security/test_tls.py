"""TLS and mutual TLS over a real port, with certificates made here."""

from __future__ import annotations

import asyncio
import datetime as dt
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support.running_server import config_of
from twofold import TLS, Client, UnavailableError
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_server.app import serve

YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
REFUSED = grpc.StatusCode.UNAVAILABLE


def key_of(certificate):
    """Return a private key as PEM."""
    return certificate.private_key_pem.bytes()


def chain_of(certificate):
    """Return a certificate chain as PEM."""
    return b"".join(pem.bytes() for pem in certificate.cert_chain_pems)


def roots_of(authority):
    """Return an authority's certificate as PEM."""
    return authority.cert_pem.bytes()


def issue(authority, *names, **terms):
    """Issue a certificate for localhost, or for other names."""
    return authority.issue_cert(*(names or ("localhost", "127.0.0.1")), **terms)


@dataclass
class Files:
    """The files that a server's settings name."""

    folder: Path

    def write(self, *, certificate=None, key=None, client_ca=None):
        """Replace the given files, each atomically."""
        for name, content in (("cert.pem", certificate), ("key.pem", key), ("ca.pem", client_ca)):
            if content is not None:
                (self.folder / "new").write_bytes(content)
                (self.folder / "new").rename(self.folder / name)

    def issue(self, authority, **terms):
        """Give the server a new certificate of an authority."""
        made = issue(authority, **terms)
        self.write(certificate=chain_of(made), key=key_of(made))

    def settings(self, *, mutual):
        """Return the server's settings."""
        ca = {"tls_client_ca": self.folder / "ca.pem"} if mutual else {}
        return {"tls_certificate": self.folder / "cert.pem", "tls_key": self.folder / "key.pem", **ca}


@pytest.fixture(scope="module")
def authority():
    """The authority of server and callers."""
    return trustme.CA()


@pytest.fixture(scope="module")
def other_authority():
    """An authority that nobody trusts at first."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """The files of a server."""
    made = Files(tmp_path)
    made.issue(authority)
    made.write(client_ca=roots_of(authority))
    return made


async def code_for(target, roots, certificate=None):
    """Return the status code of a call over a new connection with the given roots and certificate."""
    pair = (key_of(certificate), chain_of(certificate)) if certificate else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, *pair)
    # Channels of the same credentials would share a connection, and here each shall begin one.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        try:
            answer = await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]), timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code()
        assert answer.predictions[0].label == "a_weather"
        return grpc.StatusCode.OK


async def test_tls_admits_callers_that_trust_its_certificate(store, files, authority, other_authority):
    """A caller that trusts the authority is answered; one that trusts another, or uses plaintext, is not."""
    async with serve(config_of(store, **files.settings(mutual=False))) as server:
        assert await code_for(server.target, roots_of(authority)) is grpc.StatusCode.OK
        assert await code_for(server.target, roots_of(other_authority)) is REFUSED
        async with grpc.aio.insecure_channel(server.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]), timeout=60)
        assert caught.value.code() is REFUSED


async def test_mutual_tls_lets_in_certificates_of_its_authority(store, files, authority, other_authority):
    """Only a caller with a currently valid certificate of the authority is answered."""
    later = YESTERDAY + dt.timedelta(days=3)
    callers = {
        "known": issue(authority, "caller"),
        "none": None,
        "of another authority": issue(other_authority, "caller"),
        "expired": issue(authority, "caller", not_before=YESTERDAY - dt.timedelta(days=9), not_after=YESTERDAY),
        "not yet": issue(authority, "caller", not_before=later, not_after=later + dt.timedelta(days=9)),
    }

    async with serve(config_of(store, **files.settings(mutual=True))) as server:
        assert {
            name: await code_for(server.target, roots_of(authority), caller) for name, caller in callers.items()
        } == {name: grpc.StatusCode.OK if name == "known" else REFUSED for name in callers}


async def test_an_expired_certificate_is_replaced_without_a_restart(store, files, authority):
    """Callers reject an expired server certificate, and are answered once its files have a new one."""
    files.issue(authority, not_before=YESTERDAY - dt.timedelta(days=9), not_after=YESTERDAY)

    async with serve(config_of(store, **files.settings(mutual=False))) as server:
        assert await code_for(server.target, roots_of(authority)) is REFUSED
        files.issue(authority)
        assert await code_for(server.target, roots_of(authority)) is grpc.StatusCode.OK


async def test_authorities_are_rotated_without_a_restart(store, files, authority, other_authority):
    """Server and callers change to another authority, and an open connection continues."""
    old, new = issue(authority, "caller"), issue(other_authority, "caller")

    async with serve(config_of(store, **files.settings(mutual=True))) as server:
        credentials = grpc.ssl_channel_credentials(roots_of(authority), key_of(old), chain_of(old))
        async with grpc.aio.secure_channel(server.target, credentials) as channel:
            stub = InferenceServiceStub(channel)
            await stub.Predict(pb.PredictRequest(texts=["rain"]), timeout=60)

            files.write(client_ca=roots_of(authority) + roots_of(other_authority))
            assert await code_for(server.target, roots_of(authority), new) is grpc.StatusCode.OK
            assert await code_for(server.target, roots_of(authority), old) is grpc.StatusCode.OK

            files.issue(other_authority)
            files.write(client_ca=roots_of(other_authority))
            assert await code_for(server.target, roots_of(other_authority), new) is grpc.StatusCode.OK
            assert await code_for(server.target, roots_of(other_authority), old) is REFUSED
            assert await code_for(server.target, roots_of(authority), old) is REFUSED
            await stub.Predict(pb.PredictRequest(texts=["rain"]), timeout=60)


def locked(certificate):
    """Return a private key as PEM, protected by a password."""
    key = serialization.load_pem_private_key(key_of(certificate), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


WRONG = {
    "a key that a password protects": lambda other_authority: {"key": locked(issue(other_authority))},
    "a key that does not fit": lambda other_authority: {"key": key_of(issue(other_authority))},
    "a certificate that does not fit": lambda other_authority: {"certificate": chain_of(issue(other_authority))},
    "no certificate": lambda other_authority: {"certificate": b"-----BEGIN CERTIFICATE-----\n"},
    "no authority": lambda other_authority: {"client_ca": b"none"},
}


@pytest.mark.parametrize("kind", WRONG)
async def test_invalid_certificate_files_are_not_used(kind, *, store, files, authority, other_authority, caplog):
    """Invalid files are logged and not used; the next valid ones are."""
    caller = issue(authority, "caller")

    async with serve(config_of(store, **files.settings(mutual=True))) as server:
        files.write(**WRONG[kind](other_authority))
        assert await code_for(server.target, roots_of(authority), caller) is grpc.StatusCode.OK
        assert "TLS files are invalid; the previous ones stay in force" in caplog.messages

        files.issue(other_authority)
        files.write(client_ca=roots_of(authority))
        assert await code_for(server.target, roots_of(authority), caller) is REFUSED
        assert await code_for(server.target, roots_of(other_authority), caller) is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", WRONG)
async def test_a_server_does_not_start_with_wrong_files(kind, store, files, other_authority):
    """The error names the setting and the fix."""
    files.write(**WRONG[kind](other_authority))

    with pytest.raises(ValueError, match=r"^tls-.*; use "):
        async with serve(config_of(store, **files.settings(mutual=True))):
            pass


def fetch(url, authority):
    """Return the metrics over TLS with the given roots, or the type of the error."""
    context = ssl.create_default_context(cadata=roots_of(authority).decode())
    try:
        with urllib.request.urlopen(url, context=context, timeout=60) as response:
            return response.read().decode()
    except urllib.error.URLError as error:
        return type(error.reason)


async def test_metrics_use_tls_on_request(store, files, authority, other_authority, caplog):
    """With metrics-tls the HTTP port uses the server's certificate and reloads it when it changes."""

    def story(url):
        assert url.startswith("https://127.0.0.1:")
        assert "twofold_ready 1.0" in fetch(url, authority)
        assert fetch(url, other_authority) is ssl.SSLCertVerificationError
        with pytest.raises((http.client.HTTPException, OSError)):
            urllib.request.urlopen(url.replace("https:", "http:"), timeout=60)

        files.write(**WRONG["a key that does not fit"](other_authority))
        assert "twofold_ready 1.0" in fetch(url, authority)
        assert "TLS files are invalid; the previous ones stay in force" in caplog.messages
        files.issue(other_authority)
        assert fetch(url, authority) is ssl.SSLCertVerificationError
        assert "twofold_ready 1.0" in fetch(url, other_authority)

    async with serve(config_of(store, metrics_tls=True, **files.settings(mutual=True))) as server:
        await asyncio.to_thread(story, server.metrics_url)


async def test_a_slow_handshake_blocks_nobody(store, files, authority):
    """A connection that never completes the handshake does not block others."""

    def story(url):
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port))):
            assert "twofold_ready 1.0" in fetch(url, authority)

    async with serve(config_of(store, metrics_tls=True, **files.settings(mutual=False))) as server:
        await asyncio.to_thread(story, server.metrics_url)


async def test_the_client_shows_its_certificate(store, files, authority):
    """Client(tls=TLS(...)) is answered with a certificate, and raises UnavailableError without one."""
    caller = issue(authority, "caller")
    shown = TLS(root_certificates=roots_of(authority), certificate=chain_of(caller), private_key=key_of(caller))

    def story(target):
        with Client(target, tls=shown) as client:
            assert client.predict("rain").label == "a_weather"
        unknown = Client(target, tls=TLS(root_certificates=roots_of(authority)), timeout=2)
        with unknown, pytest.raises(UnavailableError):
            unknown.predict("rain")

    async with serve(config_of(store, **files.settings(mutual=True))) as server:
        await asyncio.to_thread(story, server.target)
