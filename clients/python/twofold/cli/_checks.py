"""The checks of `twofold doctor`: what can be learned about a server from outside."""

import datetime as dt
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version

from twofold._channel import Endpoint, is_loopback
from twofold._client import Client
from twofold._retry import Retry
from twofold._types.inference import Health, Model
from twofold.cli._hints import hint_for
from twofold.errors import AccessDeniedError, TwofoldError, UnavailableError

_EXPIRY_WARNING = dt.timedelta(days=14)
_MAX_CONNECT_SECONDS = 5.0


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, its result, and how to fix a fault; *fix* is empty if there is nothing to do."""

    name: str
    state: State = State.OK
    message: str = ""
    fix: str = ""


def check_server(endpoint: Endpoint, timeout: float) -> Iterator[Check]:
    """Yield the checks of a server; a check that depends on a failed one is left out."""
    connect_timeout = min(timeout, _MAX_CONNECT_SECONDS)
    connection = _check_connection(endpoint.target, connect_timeout)
    yield connection
    if connection.state is State.FAILED:
        return
    yield _check_tls(endpoint, connect_timeout)
    with Client(
        endpoint.target,
        tls=endpoint.tls,
        token=endpoint.token,
        plaintext=endpoint.plaintext,
        timeout=timeout,
        retry=Retry(attempts=1),
    ) as client:
        health = _check_health(client, endpoint)
        yield health
        if health.name == "grpc":  # The call did not reach a gRPC server.
            return
        yield from _check_model(client)
        yield _check_token(client, endpoint)


def parse_check(line: str) -> Check:
    """Parse one line of `twofold-server doctor --json`."""
    check = json.loads(line)
    return Check(name=check["name"], state=State(check["state"]), message=check["message"], fix=check["fix"])


def are_compatible(client: str, server: str) -> bool | None:
    """
    Return whether two versions are compatible, or None if a version is not a number.

    They are if their major versions are equal; before 1.0 the minor versions must be equal, too.
    """
    try:
        ours, theirs = ([int(part) for part in release.split(".")[:2]] for release in (client, server))
    except ValueError:
        return None
    return ours[0] == theirs[0] and (ours[0] > 0 or ours == theirs)


def _check_connection(target: str, timeout: float) -> Check:
    """Open a TCP connection, before any encryption."""
    address = _parse_address(target)
    if address is None:
        return Check(name="connection", message=f"{target} is not HOST:PORT; gRPC resolves it")
    try:
        socket.create_connection(address, timeout).close()
    except OSError as error:
        advice = (
            "Start a server: twofold-server serve --store STORE."
            if is_loopback(target)
            else "Check the name, the port and the firewall."
        )
        fix = f"{advice} To use another server, set --target or TWOFOLD_TARGET."
        return Check(name="connection", state=State.FAILED, message=f"{target} does not answer: {error}", fix=fix)
    return Check(name="connection", message=f"{target} accepts connections")


def _parse_address(target: str) -> tuple[str, int] | None:
    """Return host and port of a gRPC target, or None if it has another form."""
    host, colon, port = target.removeprefix("dns:").rsplit("/", 1)[-1].rpartition(":")
    if not colon or not port.isdecimal() or target.startswith(("unix", "ipv4:", "ipv6:")):
        return None
    return host.strip("[]"), int(port)


def _check_tls(endpoint: Endpoint, timeout: float) -> Check:
    """Do a TLS handshake as gRPC does and read the server's certificate."""
    address = _parse_address(endpoint.target)
    if endpoint.tls is None:
        if is_loopback(endpoint.target):
            return Check(name="tls", message="not encrypted, on this machine")
        fix = "Use --tls or --ca FILE, unless something else encrypts the connection."
        return Check(name="tls", state=State.WARNING, message="texts and token are sent unencrypted", fix=fix)
    if address is None:
        return Check(name="tls", message="encrypted; the certificate was not checked")
    roots = endpoint.tls.root_certificates
    try:
        context = ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(address, timeout) as plain,
            context.wrap_socket(plain, server_hostname=address[0]) as encrypted,
        ):
            certificate, protocol = encrypted.getpeercert() or {}, encrypted.version()
    except (OSError, ValueError) as error:
        cause = getattr(error, "verify_message", "") or str(error)
        fix = "Set --ca FILE to the authority of the server's certificate, and --target to a name in the certificate."
        return Check(name="tls", state=State.FAILED, message=f"the TLS handshake failed: {cause}", fix=fix)
    expires_at = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), dt.UTC)
    message = f"{protocol}, certificate valid until {expires_at:%Y-%m-%d %H:%M} UTC"
    if expires_at - dt.datetime.now(dt.UTC) < _EXPIRY_WARNING:
        fix = "Renew the certificate; the server reloads the files by itself."
        return Check(name="tls", state=State.WARNING, message=message, fix=fix)
    return Check(name="tls", message=message)


def _check_health(client: Client, endpoint: Endpoint) -> Check:
    try:
        health = client.health()
    except UnavailableError as error:
        fix = (
            "If the server requires a client certificate, set --certificate FILE and --key FILE."
            if endpoint.tls
            else "If the server uses TLS, set --tls or --ca FILE; if another program uses this port, set another --target."
        )
        message = f"the port accepts connections, but gRPC calls fail: {error}"
        return Check(name="grpc", state=State.FAILED, message=message, fix=fix)
    except TwofoldError as error:
        fix = "Check --target: this may not be a Twofold server."
        return Check(name="grpc", state=State.FAILED, message=str(error), fix=fix)
    if health is Health.SERVING:
        return Check(name="health", message="serving")
    fix = (
        "Read the server's log. If no checkpoint is live, promote one: "
        "twofold checkpoints list, twofold promote CHECKPOINT"
    )
    return Check(name="health", state=State.FAILED, message=str(health).replace("_", " "), fix=fix)


def _check_model(client: Client) -> Iterator[Check]:
    try:
        model = client.model()
    except TwofoldError as error:
        yield Check(name="checkpoint", state=State.FAILED, message=str(error), fix=hint_for(error, "model"))
        return
    labels = f"{len(model.labels)} labels, {len(model.entity_types)} entity types"
    yield Check(name="checkpoint", message=f"{model.checkpoint_id} is live: {labels}")
    yield _check_versions(model)


def _check_versions(model: Model) -> Check:
    ours, theirs = version("twofold"), model.server_version
    message = f"client {ours}, server {theirs or 'unknown'}"
    compatible = are_compatible(ours, theirs)
    if compatible is None:
        fix = "Compare the versions yourself: the server does not report a version number."
        return Check(name="versions", state=State.WARNING, message=message, fix=fix)
    if compatible:
        return Check(name="versions", message=f"{message}: compatible")
    minor = ".".join(theirs.split(".")[:2])
    fix = f"Install a compatible client: pip install 'twofold=={minor}.*'"
    return Check(name="versions", state=State.FAILED, message=f"{message}: not compatible", fix=fix)


def _check_token(client: Client, endpoint: Endpoint) -> Check:
    """Try one read-only call for each scope. The scope admin has none that needs only that scope."""
    calls: dict[str, Callable[[], object]] = {
        "predict": client.model,
        "adapt": lambda: next(iter(client.jobs(page_size=1)), None),
    }
    allowed = {scope: _is_allowed(call) for scope, call in calls.items()}
    granted = [scope for scope, is_allowed in allowed.items() if is_allowed]
    caller = "the token has" if endpoint.token else "calls without a token have"
    scopes = f"scope{'s' if len(granted) > 1 else ''} {' and '.join(granted)}" if granted else "no scope"
    message = f"{caller} {scopes}; admin was not tested"
    if len(granted) == len(allowed):
        return Check(name="token", message=message)
    missing = " and ".join(scope for scope in allowed if scope not in granted)
    fix = (
        f"To {missing}, set --token or TWOFOLD_TOKEN to a token with that scope; create one: twofold-server make-token"
    )
    return Check(name="token", state=State.WARNING if granted else State.FAILED, message=message, fix=fix)


def _is_allowed(call: Callable[[], object]) -> bool:
    try:
        call()
    except AccessDeniedError:
        return False
    except TwofoldError:
        return True  # The call was authorised; the other checks report its error.
    return True
