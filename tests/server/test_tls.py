"""TLS and mutual TLS over a real port."""

from __future__ import annotations

import asyncio
import shutil
import subprocess

import grpc
import pytest
from server.running import config_of
from twofold.v1 import inference_pb2 as pb
from twofold.v1.inference_pb2_grpc import InferenceServiceStub
from twofold_server.app import serve

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by the openssl command")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a self-signed certificate, which is its own authority."""
    path = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, cwd=path, check=True, capture_output=True, timeout=60)
    return path


async def label_over(target, credentials):
    """Ask for a label over a channel with these credentials."""
    async with grpc.aio.secure_channel(target, credentials) as channel:
        response = await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]), timeout=10)
        return response.predictions[0].label


def test_a_certificate_switches_tls_on(store, folder):
    """A caller that trusts the certificate is answered, one that speaks plaintext is not."""

    async def main():
        config = config_of(store, tls_certificate=folder / "cert.pem", tls_key=folder / "key.pem")
        async with serve(config) as server:
            trusting = grpc.ssl_channel_credentials((folder / "cert.pem").read_bytes())
            assert await label_over(server.target, trusting) == "a_weather"
            async with grpc.aio.insecure_channel(server.target) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await InferenceServiceStub(channel).Predict(pb.PredictRequest(texts=["rain"]), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_an_authority_switches_mutual_tls_on(store, folder):
    """Only a caller with a certificate of the authority is answered."""
    certificate, key = (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()

    async def main():
        config = config_of(
            store,
            tls_certificate=folder / "cert.pem",
            tls_key=folder / "key.pem",
            tls_client_ca=folder / "cert.pem",
        )
        async with serve(config) as server:
            known = grpc.ssl_channel_credentials(certificate, key, certificate)
            assert await label_over(server.target, known) == "a_weather"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await label_over(server.target, grpc.ssl_channel_credentials(certificate))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())
