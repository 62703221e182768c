"""A database URL that hides its secrets when printed."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
_NAME = re.compile(r"[\w.%-]*")
_FORM = (
    "write postgresql://USER:PASSWORD@HOST:PORT/NAME, with every special character of the user and the password as %XX, "
    "or leave it out for SQLite in the store"
)


class DatabaseUrl:
    """The URL of a PostgreSQL database. Raises ValueError without quoting the URL, which may contain a password."""

    __slots__ = ("_parts", "_text")

    def __init__(self, text: str) -> None:
        try:
            parts = urlsplit(text)
            known = parts.scheme in _SCHEMES and (parts.port or 1) > 0
        except ValueError:  # Its message quotes the URL.
            known = False
        if not known or parts.fragment or not _NAME.fullmatch(parts.path.removeprefix("/")):
            raise ValueError(f"is not a PostgreSQL URL; {_FORM}") from None
        self._parts: SplitResult = parts
        self._text = "postgresql+psycopg:" + text.partition(":")[2]

    def reveal(self) -> str:
        """Return the whole URL, including the password, to connect with."""
        return self._text

    def __str__(self) -> str:
        account, at, host = self._parts.netloc.rpartition("@")
        user, colon, _ = account.partition(":")
        query = "?***" if self._parts.query else ""  # libpq accepts passwords there as well.
        return f"postgresql://{user}{colon and ':***'}{at}{host}{self._parts.path}{query}"

    def __repr__(self) -> str:
        return f"DatabaseUrl({str(self)!r})"

    def __eq__(self, value: object) -> bool:
        return isinstance(value, DatabaseUrl) and self._text == value._text

    def __hash__(self) -> int:
        return hash(self._text)
