"""Bearer tokens: how they are created, stored and looked up.

A token is ``twofold.NAME.SECRET``. The name selects the one digest to compare. The file is TOML
with one line per token, without the secret:

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

_PREFIX = "twofold"
_SECRET_BYTES = 32
"""Bytes of a secret. They are random, so a plain SHA-256 is enough; a slow digest would only slow calls down."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FIX = "write the line as `twofold-server make-token` prints it"


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token's digest, its scopes and its rate limit; None means no limit."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], msgspec.Meta(min_length=1)]
    requests_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None


def make_token(name: str, scopes: Iterable[Scope], requests_per_second: float | None = None) -> tuple[str, str]:
    """Return a new token, and the line of the file that grants it access. Raises ValueError."""
    _check_name(name)
    if requests_per_second is not None and not 0 < requests_per_second < float("inf"):
        raise ValueError(
            f"requests-per-second {requests_per_second} must be a number above 0; leave it out for no limit"
        )
    token = f"{_PREFIX}.{name}.{secrets.token_urlsafe(_SECRET_BYTES)}"
    scope_list = ", ".join(f'"{scope}"' for scope in SCOPES if scope in set(scopes))
    limit = "" if requests_per_second is None else f", requests_per_second = {requests_per_second}"
    return token, f'{name} = {{ sha256 = "{_digest(token)}", scopes = [{scope_list}]{limit} }}'


def read_tokens(path: Path) -> dict[str, Grant]:
    """Return the grants of a file by name. Raises OSError, or ValueError that names the token and the fix."""
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; {_FIX}") from error
    grants = {}
    for name, value in written.items():
        try:
            _check_name(name)
            grants[name] = msgspec.convert(value, Grant)
        except ValueError as error:
            raise ValueError(f"{path.name}: {name}: {error}; {_FIX}") from error
    return grants


def find_grant(token: str, grants: Mapping[str, Grant]) -> tuple[str, Grant] | None:
    """Return the name and grant of a token, or None if it is unknown."""
    prefix, _, remainder = token.partition(".")
    name = remainder.partition(".")[0]
    grant = grants.get(name)
    # Names are public. The digest is secret, so it is compared in constant time.
    if prefix != _PREFIX or grant is None or not hmac.compare_digest(_digest(token), grant.sha256):
        return None
    return name, grant


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="backslashreplace")).hexdigest()


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name[:100]!r} must be 1 to 64 letters, digits, '_' and '-'")
