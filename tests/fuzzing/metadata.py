"""Metadata of calls: valid and invalid tokens, request ids, and anything else that fits a header."""

from __future__ import annotations

from random import Random

from fuzzing.values import MARK

TOKENS: dict[str, frozenset[str]] = {
    "all": frozenset({"predict", "adapt", "admin"}),
    "predict": frozenset({"predict"}),
    "adapt": frozenset({"adapt"}),
    "admin": frozenset({"admin"}),
    "slow": frozenset({"predict", "adapt", "admin"}),
}
"""What the tokens allow that the server knows, by name. "slow" may send five requests a second."""

_NAMES = (
    "x-request-id",
    "traceparent",
    "tracestate",
    "user-agent",
    "authorization-bin",
    "x-bin",
    "cookie",
    "te2",
)
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def placeholder(name: str) -> bytes:
    """Return the placeholder of a token, which the player replaces."""
    return f"<token {name}>".encode()


def show(chance: Random, *, tokens: bool) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    """Return the caller (empty if the first token is unknown) and the metadata of the call."""
    shown: list[tuple[str, bytes]] = []
    if chance.random() < (0.3 if tokens else 0.05):
        for _ in range(chance.choice((1, 1, 2, 40))):
            name = chance.choice(_NAMES)
            shown.append((name, _value(name, chance)))
    if not tokens and chance.random() < 0.95:
        return "", tuple(shown)
    if chance.random() < 0.75:
        caller = chance.choice(("all", "all", "all", *TOKENS))
        scheme = chance.choice((b"Bearer ", b"Bearer ", b"bearer ", b"BEARER  "))
        return caller, (("authorization", scheme + placeholder(caller)), *shown)
    return "", (*(("authorization", item) for item in _wrong(chance)), *shown)


def _wrong(chance: Random) -> list[bytes]:
    """Return headers of which the first one is not a valid token."""
    right = b"Bearer " + placeholder("all")
    return chance.choice(
        (
            [],
            [b""],
            [b"Bearer"],
            [b"Bearer "],
            [b"Basic " + placeholder("all")],
            [placeholder("all")],
            [right + b"x"],
            [right[:-1]],  # No placeholder any more.
            [b"Bearer twofold.all."],
            [b"Bearer twofold.nobody.secret"],
            [b"Bearer twofold.all", right],
            [b"Bearer " + MARK.encode()],
            [b"Bearer " + b"x" * 6000],
            [b"Bearer twofold." + b"." * 3000],
            [_value("authorization", chance), right],
        )
    )


def _value(name: str, chance: Random) -> bytes:
    """Return a header's value: any bytes for binary headers, otherwise printable characters."""
    length = chance.choice((0, 1, 16, 55, 300))
    if name.endswith("-bin"):
        return chance.randbytes(length)
    if name == "traceparent" and chance.random() < 0.5:
        return f"00-{chance.randbytes(16).hex()}-{chance.randbytes(8).hex()}-01".encode()
    return chance.choice((MARK, "".join(chance.choices(_PRINTABLE, k=length)), "x" * length, "../..")).encode()
