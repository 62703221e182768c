"""Bearer tokens: what the file of them says, and how one is made.

A token is ``twofold.NAME.SECRET``. It says whose it is, so that one digest is compared and not all. The file is TOML
and holds a line for each, without the secret:

    NAME = { sha256 = "…", scopes = ["predict"], requests_per_second = 50 }
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

Scope = Literal["predict", "adapt", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_KIND = "twofold"
_SECRET_BYTES = 32
"""So many that nobody tries them all: a plain SHA-256 will do, and a slow digest would only slow the calls down."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADVICE = "write the line as `twofold-server make-token` prints it"


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file says of one token: its digest, what it may do, and how often; None means without a limit."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], msgspec.Meta(min_length=1)]
    requests_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None


def make_token(name: str, scopes: Iterable[Scope], requests_per_second: float | None = None) -> tuple[str, str]:
    """Make a token, and the line of the file that lets it in. Raises ValueError."""
    _check_name(name)
    if requests_per_second is not None and not 0 < requests_per_second < float("inf"):
        raise ValueError(
            f"requests-per-second {requests_per_second} must be a number above 0; leave it out for no limit"
        )
    token = f"{_KIND}.{name}.{secrets.token_urlsafe(_SECRET_BYTES)}"
    listed = ", ".join(f'"{scope}"' for scope in SCOPES if scope in set(scopes))
    limit = "" if requests_per_second is None else f", requests_per_second = {requests_per_second}"
    return token, f'{name} = {{ sha256 = "{_digest(token)}", scopes = [{listed}]{limit} }}'


def read_tokens(path: Path) -> dict[str, Grant]:
    """Read the file: grants by name. Raises OSError, or ValueError that names the line's token and what to write."""
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; {_ADVICE}") from error
    grants = {}
    for name, value in written.items():
        try:
            _check_name(name)
            grants[name] = msgspec.convert(value, Grant)
        except ValueError as error:
            raise ValueError(f"{path.name}: {name}: {error}; {_ADVICE}") from error
    return grants


def find_grant(token: str, grants: Mapping[str, Grant]) -> tuple[str, Grant] | None:
    """Return the name and the grant of a token, or None if it is not one of these."""
    kind, _, rest = token.partition(".")
    name = rest.partition(".")[0]
    grant = grants.get(name)
    # Names are no secret; the digest is, and how long its comparison takes must not tell how much of it was right.
    if kind != _KIND or grant is None or not hmac.compare_digest(_digest(token), grant.sha256):
        return None
    return name, grant


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="backslashreplace")).hexdigest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name[:100]!r} must be 1 to 64 letters, digits, '_' and '-'")
