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
    """Only addresses of this machine are loopback."""
    assert is_loopback(target) is expected


def test_plaintext_must_be_explicit():
    """A target on another machine needs TLS or explicit plaintext."""
    with pytest.raises(ValueError, match="plaintext=True"):
        Client("twofold.example:8500")
    with pytest.raises(ValueError, match="give one"):
        Client("twofold.example:8500", tls=TLS(), plaintext=True)
    with pytest.raises(ValueError, match="go together"):
        TLS(certificate=b"")
    Client("twofold.example:8500", plaintext=True).close()


def test_token(server):
    """The token is sent with every call and never printed."""
    with Client(server.target, token="s3cret") as client:
        client.model()

        assert server.requests[-1].metadata["authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(client) + repr(client._endpoint)


def test_a_distant_server(server):
    """A slow connection attempt is not given up and repeated."""
    connections = []

    def forward(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                sink.sendall(data)

    def proxy(listener):
        with contextlib.suppress(OSError):
            while True:
                client_side, _ = listener.accept()
                connections.append(client_side)
                time.sleep(0.5)  # Longer than the initial backoff, which is gRPC's default for the connection timeout.
                host, _, port = server.target.rpartition(":")
                server_side = socket.create_connection((host, int(port)))
                sockets.extend([client_side, server_side])
                threading.Thread(target=forward, args=(client_side, server_side), daemon=True).start()
                threading.Thread(target=forward, args=(server_side, client_side), daemon=True).start()

    sockets = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=proxy, args=(listener,), daemon=True).start()
        with Client(f"127.0.0.1:{listener.getsockname()[1]}", retry=Retry(attempts=1)) as client:
            assert client.model().checkpoint_id == "first"
        listener.shutdown(socket.SHUT_RDWR)
    for opened in sockets:
        opened.close()
    assert len(connections) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")
def test_tls(tmp_path):
    """Client and server verify each other's certificate, and the token is sent over the encrypted channel."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = TLS.from_files(tmp_path / "cert.pem", certificate=tmp_path / "cert.pem", private_key=tmp_path / "key.pem")
    calls = []
    check = grpc.unary_unary_rpc_method_handler(
        lambda _, context: calls.append(dict(context.invocation_metadata())) or wrappers_pb2.Int32Value(value=1),
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
            assert calls[0]["authorization"] == "Bearer t"
        with Client(target, tls=TLS(), retry=Retry(attempts=1)) as untrusted, pytest.raises(UnavailableError):
            untrusted.model(timeout=5)
    finally:
        server.stop(None).wait()
