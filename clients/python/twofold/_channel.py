"""The address of a server and how to connect to it."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from twofold._operations import Failure, Rpc
from twofold._trace_context import trace_metadata
from twofold.status import METADATA_KEY

_OPTIONS = (
    # A server that restarts is back within a second or two; gRPC's default backoff of 1 s to 120 s would outlast our retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this is the timeout of one connection attempt: a distant or busy server needs several round trips.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Vectors of all tokens can be larger than the default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    # Detect a broken connection during a long watch. A server may refuse pings more often than every 5 minutes.
    ("grpc.keepalive_time_ms", 360_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """
    TLS settings: PEM bytes, each of them optional.

    TLS()                                             # trust the root certificates of the system
    TLS(root_certificates=pem)                        # trust these certificates
    TLS(certificate=pem, private_key=pem)             # also send a client certificate (mutual TLS)
    """

    root_certificates: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together; give both or none")

    @classmethod
    def from_files(
        cls,
        root_certificates: str | Path | None = None,
        *,
        certificate: str | Path | None = None,
        private_key: str | Path | None = None,
    ) -> "TLS":
        """Read the PEM files; raise OSError if a file cannot be read."""
        pems = [path and Path(path).read_bytes() for path in (root_certificates, certificate, private_key)]
        return cls(root_certificates=pems[0] or None, certificate=pems[1] or None, private_key=pems[2] or None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The address of a server, and the credentials for it."""

    target: str
    tls: TLS | None = None
    token: str | None = field(default=None, repr=False)
    plaintext: bool = False

    def __post_init__(self) -> None:
        if self.tls and self.plaintext:
            raise ValueError("tls and plaintext=True exclude each other; give one")
        if not (self.tls or self.plaintext or is_loopback(self.target)):
            raise ValueError(
                f"{self.target!r} is not on this machine; give tls=TLS() to encrypt, "
                "or plaintext=True to send texts and token unencrypted"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call that is made now: the token and the trace context."""
        token = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*token, *trace_metadata())

    def open_channel(self, library: Any) -> Any:
        """Open a channel of *library*, which is grpc or grpc.aio."""
        if not self.tls:
            return library.insecure_channel(self.target, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self.tls.root_certificates, self.tls.private_key, self.tls.certificate
        )
        return library.secure_channel(self.target, credentials, options=_OPTIONS)


def is_loopback(target: str) -> bool:
    """Return whether *target*, in gRPC's syntax, is an address of this machine."""
    scheme, colon, address = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if colon and scheme in {"dns", "ipv4", "ipv6"}:
        target = address.rsplit("/", 1)[-1]
    host = target[1:].partition("]")[0] if target.startswith("[") else target.rpartition(":")[0] or target
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def multicallable(channel: Any, rpc: Rpc) -> Any:
    """Return the callable of *rpc* on a channel of grpc or grpc.aio."""
    arity = f"{'stream' if rpc.streams_requests else 'unary'}_{'stream' if rpc.streams_responses else 'unary'}"
    return getattr(channel, arity)(rpc.path, request_serializer=rpc.serialize, response_deserializer=rpc.deserialize)


def failure_of(error: Any) -> Failure:
    """Convert a grpc.RpcError of grpc or grpc.aio into a Failure."""
    details = next((value for key, value in error.trailing_metadata() or () if key == METADATA_KEY), None)
    return Failure(error.code().value[0], error.details() or "", details)
