"""Hostile protobuf messages: built from descriptors, modified, or with broken bytes."""

from __future__ import annotations

from random import Random

from fuzzing.values import blob, value
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_DEEPEST = 5
_MOST_BYTES = 7_900_000
"""Just under what a server takes in one message by default."""


def invent(kind: Descriptor, chance: Random, depth: int = 0) -> Message:
    """Return a message of a type, with hostile values in any of its fields, at any depth."""
    message: Message = GetMessageClass(kind)()
    share = chance.choice((0.3, 0.7, 1.0))
    for field in kind.fields:
        if chance.random() < share and depth < _DEEPEST:
            _set(message, field, chance, depth)
    return message


def spoil(message: Message, chance: Random) -> Message:
    """Return a copy of a message with one hostile field, at any depth."""
    spoilt = type(message)()
    spoilt.CopyFrom(message)
    inner, depth = spoilt, 0
    while True:
        parts = [part for _, part in _parts(inner)]
        if not parts or chance.random() < 0.4 or depth >= _DEEPEST:
            break
        inner, depth = chance.choice(parts), depth + 1
    if inner.DESCRIPTOR.fields:
        field = chance.choice(inner.DESCRIPTOR.fields)
        if not field.is_repeated or chance.random() < 0.5:
            inner.ClearField(field.name)
        if chance.random() < 0.9:
            _set(inner, field, chance, depth)
    return spoilt


def flood(kind: Descriptor, chance: Random) -> bytes:
    """Return the bytes of a message with one field, at any depth, repeated far too often."""
    chain: list[Field] = []
    while True:
        repeated = [field for field in kind.fields if field.is_repeated]
        below = [field for field in kind.fields if field.message_type and field not in chain]
        if repeated and (not below or chance.random() < 0.5):
            break
        if not below:
            return encode(1, 2, chance.randbytes(chance.randrange(100))) * (1 << 16)
        chain.append(chance.choice(below))
        kind = chain[-1].message_type
    field = chance.choice(repeated)
    length = int(10 ** chance.uniform(3, 6.9))
    if field.cpp_type in {Field.CPPTYPE_STRING, Field.CPPTYPE_MESSAGE}:
        element = encode(field.number, 2, chance.choice((b"", b"", b"x", b"\x0a\x01x", b"\x0a\x00\x12\x01BYTES")))
        raw = element * max(1, min(length, _MOST_BYTES) // len(element))
    else:
        raw = encode(field.number, 2, chance.choice((b"\0", b"\x01", b"\x63")) * length)
    for outer in reversed(chain):
        raw = encode(outer.number, 2, raw)
    return raw


def damage(raw: bytes, chance: Random) -> bytes:
    """Return the damaged bytes of a message: with flipped bits, truncated, repeated, stretched, or nested endlessly."""
    content = bytearray(raw or blob(chance))
    index = chance.randrange(len(content) + 1)
    match chance.randrange(9):
        case 0:
            for _ in range(chance.randrange(1, 8)):
                if content:
                    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 1:
            del content[index:]
        case 2:
            content *= chance.randrange(2, 5)
        case 3:
            content[index:index] = chance.randbytes(chance.randrange(1, 20))
        case 4:  # A field that nobody knows, of each wire type.
            number, wire = chance.choice((15, 999, 2**29 - 1, 0)), chance.randrange(8)
            content += encode(number, wire, blob(chance))
        case 5:  # A length that lies.
            content += varint(chance.randrange(1, 9) << 3 | 2) + varint(
                chance.choice((2**31 - 1, 2**32, 2**63, 2**64 - 1))
            )
        case 6:
            number = chance.randrange(1, 4)
            for _ in range(chance.choice((5, 99, 101, 300)) if len(content) < 10_000 else 0):
                content[:] = encode(number, 2, bytes(content))
        case 7:  # Groups, opened and hardly closed.
            content += varint(999 << 3 | 3) * chance.choice((1, 90, 200, 50_000)) + varint(999 << 3 | 4)
        case _:
            content[index:index] = b"\xff" * chance.choice((1, 9, 10, 11))
    return bytes(content)


def varint(number: int) -> bytes:
    """Encode a number."""
    raw = bytearray()
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)
    return bytes(raw)


def encode(number: int, wire: int, content: bytes) -> bytes:
    """Encode a field of a wire type; if the type has a length, the content follows it."""
    return varint(number << 3 | wire) + (varint(len(content)) + content if wire == 2 else content[:8].ljust(8, b"\x01"))


def _set(message: Message, field: Field, chance: Random, depth: int) -> None:
    if field.message_type and field.message_type.GetOptions().map_entry:
        _fill_map(message, field, chance, depth)
    elif field.is_repeated:
        elements = getattr(message, field.name)
        for _ in range(chance.choices((1, 2, 3, 9, 300), (50, 20, 15, 14, 1))[0] if depth < 3 else 1):
            if field.message_type:
                elements.add().CopyFrom(invent(field.message_type, chance, depth + 1))
            else:
                elements.append(value(field, chance))
    elif field.message_type:
        getattr(message, field.name).CopyFrom(invent(field.message_type, chance, depth + 1))
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value(field, chance))


def _fill_map(message: Message, field: Field, chance: Random, depth: int) -> None:
    entry = field.message_type.fields_by_name
    for _ in range(chance.randrange(1, 4)):
        key = value(entry["key"], chance)
        if entry["value"].message_type:
            getattr(message, field.name)[key].CopyFrom(invent(entry["value"].message_type, chance, depth + 1))
        else:
            getattr(message, field.name)[key] = value(entry["value"], chance)


def _parts(message: Message) -> list[tuple[Field, Message]]:
    """Return the messages within a message."""
    actual = []
    for field, content in message.ListFields():
        if not field.message_type:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type:
                actual += [(field, content[key]) for key in sorted(content)]
        else:
            actual += [(field, item) for item in (content if field.is_repeated else [content])]
    return actual
