"""What can be known of a server from outside: one check after the other, each with what to do if it fails."""

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
from twofold.cli._hints import advice_of
from twofold.errors import AccessDeniedError, TwofoldError, UnavailableError

_SOON = dt.timedelta(days=14)


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    state: State = State.OK
    said: str = ""
    todo: str = ""


def examine(endpoint: Endpoint, timeout: float) -> Iterator[Check]:
    """Yield the checks of a server; what cannot be known without an earlier one is left out if that one fails."""
    reached = _reach(endpoint.target, min(timeout, 5.0))
    yield reached
    if reached.state is State.FAILED:
        return
    yield _encryption(endpoint, min(timeout, 5.0))
    with Client(
        endpoint.target,
        tls=endpoint.tls,
        token=endpoint.token,
        plaintext=endpoint.plaintext,
        timeout=timeout,
        retry=Retry(attempts=1),
    ) as client:
        healthy = _health(client, endpoint)
        yield healthy
        if healthy.name == "grpc":  # Not even that call came through.
            return
        yield from _model(client)
        yield _token(client, endpoint)


def local_check(line: str) -> Check:
    """Read a line of `twofold-server doctor --json`."""
    told = json.loads(line)
    return Check(name=told["name"], state=State(told["state"]), said=told["said"], todo=told["todo"])


def fits(client: str, server: str) -> bool | None:
    """Whether two versions understand each other: the same major one, before 1.0 also the minor one. None: no versions."""
    try:
        ours, theirs = ([int(part) for part in one.split(".")[:2]] for one in (client, server))
    except ValueError:
        return None
    return ours[0] == theirs[0] and (ours[0] > 0 or ours == theirs)


def _reach(target: str, patience: float) -> Check:
    """Open a connection, before any encryption."""
    address = _address(target)
    if address is None:
        return Check(name="reach", said=f"{target} is no host and port; left to gRPC")
    host, port = address
    try:
        socket.create_connection((host, port), patience).close()
    except OSError as error:
        here = is_loopback(target)
        start = (
            "Start one there: twofold-server --store STORE. " if here else "Check the name, the port and the firewall. "
        )
        todo = f"{start}Another is named by --target or TWOFOLD_TARGET."
        return Check(name="reach", state=State.FAILED, said=f"{target} does not answer: {error}", todo=todo)
    return Check(name="reach", said=f"{target} takes connections")


def _address(target: str) -> tuple[str, int] | None:
    """Return host and port of a target, as gRPC writes it; None if it has none."""
    host, colon, port = target.removeprefix("dns:").rsplit("/", 1)[-1].rpartition(":")
    if not colon or not port.isdecimal() or target.startswith(("unix", "ipv4:", "ipv6:")):
        return None
    return host.strip("[]"), int(port)


def _encryption(endpoint: Endpoint, patience: float) -> Check:
    """Shake hands as gRPC does and look at the server's certificate."""
    address = _address(endpoint.target)
    if endpoint.tls is None:
        if is_loopback(endpoint.target):
            return Check(name="tls", said="not encrypted, on this machine")
        todo = "Give --tls or --ca FILE, unless something else protects the way."
        return Check(name="tls", state=State.WARNING, said="texts and token travel unencrypted", todo=todo)
    if address is None:
        return Check(name="tls", said="encrypted; the certificate was not looked at")
    roots = endpoint.tls.root_certificates
    try:
        context = ssl.create_default_context(cadata=roots.decode("ascii") if roots else None)
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(address, patience) as plain,
            context.wrap_socket(plain, server_hostname=address[0]) as shaken,
        ):
            certificate, protocol = shaken.getpeercert() or {}, shaken.version()
    except (OSError, ValueError) as error:
        said = getattr(error, "verify_message", "") or str(error)
        todo = (
            "Give the authority of the server's certificate with --ca FILE, and a --target that the certificate names."
        )
        return Check(name="tls", state=State.FAILED, said=f"no handshake: {said}", todo=todo)
    ends = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), dt.UTC)
    said = f"{protocol}, certificate good until {ends:%Y-%m-%d %H:%M} UTC"
    if ends - dt.datetime.now(dt.UTC) < _SOON:
        return Check(
            name="tls", state=State.WARNING, said=said, todo="Renew it; the server reads the new files itself."
        )
    return Check(name="tls", said=said)


def _health(client: Client, endpoint: Endpoint) -> Check:
    try:
        found = client.health()
    except UnavailableError as error:
        todo = (
            "If it asks for a certificate, give --certificate FILE and --key FILE."
            if endpoint.tls
            else "If it speaks TLS, give --tls or --ca FILE; if something else has this port, give another --target."
        )
        return Check(name="grpc", state=State.FAILED, said=f"it takes connections and no calls: {error}", todo=todo)
    except TwofoldError as error:
        return Check(name="grpc", state=State.FAILED, said=str(error), todo="Is it a Twofold server? Check --target.")
    if found is Health.SERVING:
        return Check(name="health", said="serving")
    todo = "See the server's log; if it has no checkpoint yet, promote one: twofold checkpoints, twofold promote ID"
    return Check(name="health", state=State.FAILED, said=str(found).replace("_", " "), todo=todo)


def _model(client: Client) -> Iterator[Check]:
    try:
        found = client.model()
    except TwofoldError as error:
        yield Check(name="checkpoint", state=State.FAILED, said=str(error), todo=advice_of(error, "model"))
        return
    heads = f"{len(found.labels)} labels, {len(found.entity_types)} entity types"
    yield Check(name="checkpoint", said=f"{found.checkpoint_id} answers: {heads}")
    yield _versions(found)


def _versions(found: Model) -> Check:
    ours, theirs = version("twofold"), found.server_version
    said = f"client {ours}, server {theirs or 'unknown'}"
    fit = fits(ours, theirs)
    if fit is None:
        return Check(
            name="versions", state=State.WARNING, said=said, todo="Compare them yourself: the server names none."
        )
    if fit:
        return Check(name="versions", said=f"{said}: they fit")
    minor = ".".join(theirs.split(".")[:2])
    todo = f"Install the client that fits: pip install 'twofold=={minor}.*'"
    return Check(name="versions", state=State.FAILED, said=f"{said}: they do not fit", todo=todo)


def _token(client: Client, endpoint: Endpoint) -> Check:
    """Try a call of each scope that changes nothing. There is none of admin."""
    tries: dict[str, Callable[[], object]] = {
        "predict": client.model,
        "adapt": lambda: next(iter(client.jobs(page_size=1)), None),
    }
    may = {scope: _allowed(call) for scope, call in tries.items()}
    given = [scope for scope, allowed in may.items() if allowed]
    whose = "the token" if endpoint.token else "without a token you"
    said = f"{whose} may {' and '.join(given) or 'do nothing of predict and adapt'}; admin is not tried"
    if len(given) == len(may):
        return Check(name="token", said=said)
    missing = " and ".join(scope for scope in may if scope not in given)
    todo = f"To {missing}, give a token with that scope: --token or TWOFOLD_TOKEN. twofold-server make-token makes one."
    return Check(name="token", state=State.WARNING if given else State.FAILED, said=said, todo=todo)


def _allowed(call: Callable[[], object]) -> bool:
    try:
        call()
    except AccessDeniedError:
        return False
    except TwofoldError:
        return True  # It was let in; what went wrong after that is told by other checks.
    return True
