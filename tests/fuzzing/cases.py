"""A case: the bytes of a call, and how it is made. A seed and a number determine it, and a file stores it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

import msgspec
from fuzzing import metadata, sockets
from fuzzing.messages import damage, flood, invent, spoil
from fuzzing.methods import METHODS, Method
from fuzzing.tensors import lie
from fuzzing.values import blob
from google.protobuf.message import Message

Play = Literal["whole", "cancel", "open", "deaf"]
"""Say it all and listen; go away in the middle; never say that it was all; or do not listen."""

INFER = "/inference.GRPCInferenceService/ModelInfer"
METRICS, GRPC = "tcp:metrics", "tcp:grpc"
"""The two ports, as paths of cases that are no calls."""
_SLOW = {
    "PromoteCheckpoint",
    "RollBack",
    "RepositoryModelLoad",
    "Adapt",
    "UploadDataset",
    "CancelJob",
    "Watch",
    "WatchJob",
}
"""They load engines, start processes or wait: the others are tried twelve times as often."""
_PATHS = [path for path, method in METHODS.items() for _ in range(1 if method.name in _SLOW else 12)]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a call. Metadata whose name ends in "-bin" is bytes; *caller* is the owner of the first token."""

    name: str
    kind: str
    path: str
    messages: tuple[bytes, ...] = ()
    play: Play = "whole"
    timeout: float | None = None
    """Deadline in seconds; without one the caller has patience."""
    pause: float = 0.0
    """Seconds until a caller goes away."""
    compressed: bool = False
    metadata: tuple[tuple[str, bytes], ...] = ()
    caller: str = ""


def make_case(seed: int, number: int, *, tokens: bool) -> Case:
    """Return a case, independent of earlier cases. With *tokens* most callers have one."""
    chance = Random(f"{seed}/{number}/{tokens}")
    kind = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    case = _KINDS[kind][1](chance)
    caller, shown = ("", ())
    if not case.path.startswith("tcp:"):
        caller, shown = metadata.show(chance, tokens=tokens)
    return msgspec.structs.replace(case, name=f"{seed}-{number}-{kind}", kind=kind, metadata=shown, caller=caller)


def _ask(path: str, *messages: bytes, **how: object) -> Case:
    return Case(name="", kind="", path=path, messages=messages, **how)


def _described(chance: Random) -> Method:
    """Choose a method with known messages."""
    while (method := METHODS[chance.choice(_PATHS)]).request is None:
        pass
    return method


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _noise(chance: Random) -> Case:
    size = chance.choice((0, 1, 2, 5, 20, 100, 5000))
    return _ask(chance.choice(_PATHS), *(chance.randbytes(size) for _ in range(chance.choice((1, 1, 1, 2)))))


def _damaged(chance: Random) -> Case:
    method = _described(chance)
    good = chance.choice(method.good)
    raw = _bytes(good if chance.random() < 0.5 else spoil(good, chance))
    for _ in range(chance.choice((1, 1, 2, 4))):
        raw = damage(raw, chance)
    return _ask(method.path, raw)


def _invented(chance: Random) -> Case:
    method = _described(chance)
    count = chance.choice((1, 1, 3)) if method.streams_requests else 1
    return _ask(method.path, *(_bytes(invent(method.request, chance)) for _ in range(count)))


def _spoilt(chance: Random) -> Case:
    method = _described(chance)
    if method.streams_requests:
        return _ask(method.path, *(_bytes(spoil(item, chance)) for item in method.good))
    spoilt = chance.choice(method.good)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        spoilt = spoil(spoilt, chance)
    return _ask(method.path, _bytes(spoilt))


def _lying(chance: Random) -> Case:
    return _ask(INFER, lie(chance))


def _streamed(chance: Random) -> Case:
    """Return a call with any number of messages, to any method, by a caller who may leave or not read."""
    method = _described(chance)
    if chance.random() < 0.6:
        method = METHODS[
            chance.choice([path for path, item in METHODS.items() if item.streams_requests or item.streams_responses])
        ]
    good = [_bytes(item) for item in method.good] if method.request else [b""]
    count = chance.choices((0, 1, 2, 20, 2000), (20, 40, 20, 18, 2))[0]
    messages = [chance.choice((*good, b"", damage(chance.choice(good), chance))) for _ in range(min(count, 20))]
    timeout = chance.choice((None, None, 0.0, -1.0, 1e-6, 0.001, 0.02, 1e9))
    play: Play = chance.choice(("whole", "cancel", "cancel", "open", "deaf"))
    pause = chance.choice((0.0, 0.0, 0.001, 0.02, 0.1))
    tiny = count <= 20 or sum(map(len, messages)) < 20_000
    times = max(1, count // 20) if tiny else 1
    return _ask(method.path, *messages * times, play=play, timeout=timeout, pause=pause)


def _flooding(chance: Random) -> Case:
    method = _described(chance)
    return _ask(method.path, flood(method.request, chance))


def _inflated(chance: Random) -> Case:
    """Return a small call with a large message: mostly one byte, compressed."""
    size = chance.choice((1, 8, 9, 32)) * 2**20
    return _ask(_described(chance).path, bytes([chance.choice((0, 0x0A, 0xFF))]) * size, compressed=True)


def _nowhere(chance: Random) -> Case:
    """Return a call of a method that does not exist."""
    path = chance.choice(("/", "//", "/a/b/c", "/twofold.v1.InferenceService/", "/twofold.v1.InferenceService/Nothing"))
    if chance.random() < 0.4:
        service = chance.choice(
            ("twofold.v1.InferenceService", "inference.GRPCInferenceService", "grpc.health.v1.Health")
        )
        path = f"/{service}/{''.join(chance.choices('abcXYZ.%$;', k=chance.choice((1, 9, 300))))}"
    return _ask(path, blob(chance))


def _http(chance: Random) -> Case:
    return _ask(METRICS, *sockets.http(chance), pause=chance.choice((0.0, 0.05)))


def _wire(chance: Random) -> Case:
    raw = sockets.http2(chance) if chance.random() < 0.6 else sockets.http(chance)
    return _ask(GRPC, *raw, pause=chance.choice((0.0, 0.05)))


_KINDS: dict[str, tuple[float, Callable[[Random], Case]]] = {
    "noise": (12, _noise),
    "damaged": (20, _damaged),
    "invented": (20, _invented),
    "spoilt": (24, _spoilt),
    "lying": (10, _lying),
    "streamed": (8, _streamed),
    "flooding": (0.25, _flooding),
    "inflated": (0.02, _inflated),
    "nowhere": (1.5, _nowhere),
    "http": (2.5, _http),
    "wire": (1.5, _wire),
}
"""Kinds of cases: how often each is tried, and what makes one."""
