import contextlib
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import wrappers_pb2
from twofold import TLS, Client, Health, Retry, UnavailableError
from twofold._channel import is_loopback


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:8500", True),
        ("127.1.2.3:8500", True),
        ("localhost:8500", True),
        ("localhost", True),
        ("[::1]:8500", True),
        ("dns:///localhost:8500", True),
        ("ipv4:127.0.0.1:8500", True),
        ("unix:/run/twofold.sock", True),
        ("10.0.0.1:8500", False),
        ("twofold.example:8500", False),
        ("dns:///twofold.example:8500", False),
        ("localhost.example:8500", False),
        ("[2001:db8::1]:8500", False),
    ],
)
def test_loopback(target, expected):
    """Only what cannot leave the machine is loopback."""
    assert is_loopback(target) is expected


def test_plaintext_must_be_said():
    """A target on another machine is refused unless somebody says how to speak to it."""
    with pytest.raises(ValueError, match="plaintext=True"):
        Client("twofold.example:8500")
    with pytest.raises(ValueError, match="give one"):
        Client("twofold.example:8500", tls=TLS(), plaintext=True)
    with pytest.raises(ValueError, match="go together"):
        TLS(certificate=b"")
    Client("twofold.example:8500", plaintext=True).close()


def test_token(server):
    """The token goes with every call and is never shown."""
    with Client(server.target, token="s3cret") as client:
        client.model()

        assert server.requests[-1].metadata["authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(client) + repr(client._endpoint)


def test_a_far_server(server):
    """A server whose first bytes take a while to come is waited for, and not given up and dialled again."""
    dialled = []

    def pass_on(source, sink):
        with contextlib.suppress(OSError):
            while some := source.recv(4096):
                sink.sendall(some)

    def answer(listening):
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                dialled.append(near)
                time.sleep(0.5)  # Longer than the first back-off, which gRPC would take for the limit.
                host, _, port = server.target.rpartition(":")
                far = socket.create_connection((host, int(port)))
                sockets.extend([near, far])
                threading.Thread(target=pass_on, args=(near, far), daemon=True).start()
                threading.Thread(target=pass_on, args=(far, near), daemon=True).start()

    sockets = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        with Client(f"127.0.0.1:{listening.getsockname()[1]}", retry=Retry(attempts=1)) as client:
            assert client.model().checkpoint_id == "first"
        listening.shutdown(socket.SHUT_RDWR)
    for one in sockets:
        one.close()
    assert len(dialled) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")
def test_tls(tmp_path):
    """Certificates are checked both ways, and the token travels over the encrypted channel."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = TLS.from_files(tmp_path / "cert.pem", certificate=tmp_path / "cert.pem", private_key=tmp_path / "key.pem")
    seen = []
    check = grpc.unary_unary_rpc_method_handler(
        lambda _, context: seen.append(dict(context.invocation_metadata())) or wrappers_pb2.Int32Value(value=1),
        wrappers_pb2.StringValue.FromString,
        wrappers_pb2.Int32Value.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    credentials = grpc.ssl_server_credentials(
        [(tls.private_key, tls.certificate)], tls.root_certificates, require_client_auth=True
    )
    target = f"localhost:{server.add_secure_port('localhost:0', credentials)}"
    server.start()
    try:
        with Client(target, tls=tls, token="t") as client:
            assert client.health() is Health.SERVING
            assert seen[0]["authorization"] == "Bearer t"
        with Client(target, tls=TLS(), retry=Retry(attempts=1)) as stranger, pytest.raises(UnavailableError):
            stranger.model(timeout=5)
    finally:
        server.stop(None).wait()
