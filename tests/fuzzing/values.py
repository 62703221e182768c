"""Hostile values of every field type."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field

MARK = "words of a caller"
"""Stands in many texts, and may never stand in a log or a metric. Spaces keep it from being an id."""
JOB = "job-00000000T000000-00000000"
UPLOAD = "upload-00000000T000000-00000000"
"""Ids as long as real ones. Where they stand, a real one is put when the case is played."""
CHECKPOINTS = ("a", "b", "c", "d")
KNOWN = (*CHECKPOINTS, "current", "previous", "candidate", "approved", JOB, UPLOAD)
"""Names that mean something to the server."""
WORDS = ("twofold", "text", "BYTES", "label", "entities", "offset_unit", "timeout", "version", "place", "a_weather", "")

PATHS = (
    "..",
    ".",
    "/",
    "../../aliases.json",
    "/etc/passwd",
    "a/../b",
    "a\0b",
    "\0",
    "~",
    "C:\\x",
    "jobs",
    "%2e%2e/",
    "a/",
)
ODD = (
    " ",
    "\n\r\t\v\f",
    "\u2028\u2029\u0085",  # Lines that are none in JSON.
    "\ufeff\ufffe\uffff",
    "\ud7ff\ue000\U0010ffff",  # The neighbours of surrogates, and the last of all.
    "\u202etxet\u202c\u2066\u2069",
    "e\u0301\u0301\u0301" * 30,
    "\u200d\u200c\u200b\ufe0f",
    "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "ﷺ" * 20,  # Eighteen characters each, once normalized.
    "İSTANBUL ẞ ŉ ﬃ",  # Longer in lower case.
    "１２٣²½Ⅷ",
    "' OR 1=1; DROP TABLE jobs; --",
    "<script>alert(1)</script>",
    "%s%n{0}{}${x}`id`$(id)",
    "NaN",
    "-1",
    "9" * 25,
    "1e999",
    "null",
    "[SEP]",
    "[PAD] [CLS] [UNK]",
    "rain in oslo today",
    "wake me next friday in new york",
)
_PLANES = (
    (0, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x590, 0x6FF),
    (0x4E00, 0x9FFF),
    (0xE000, 0xFFFF),
    (0x1F300, 0x1FAFF),
)
_LENGTHS = (101, 201, 1000, 20_000, 20_001, 100_000)
_ALPHABET = ("x", " ", "é", "字", "😀", "\u0301", "a ", "!")

_INTEGERS = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
    Field.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_SMALL = (0, 1, 2, 3, 8, -1, 500, 501, 1_000_000_000, 253402300800, -62135596801)
"""The last two lie just outside of what a timestamp may say."""
_FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 101.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.7e308, 3.4e38, 1e-46)


def text(chance: Random) -> str:
    """Return a text: a known name, a path, something unusual, something long, or any Unicode."""
    match chance.choices(("known", "path", "odd", "mark", "planes", "long"), (25, 10, 30, 15, 17, 3))[0]:
        case "known":
            return chance.choice(KNOWN + WORDS)
        case "path":
            return chance.choice(PATHS)
        case "odd":
            return chance.choice(ODD) + chance.choice(("", "", MARK))
        case "mark":
            return f"{chance.choice(('', 'rain ', '../', chr(0)))}{MARK} {chance.randrange(1000)}"
        case "planes":
            bounds = chance.choices(_PLANES, k=chance.randrange(1, 40))
            return "".join(chr(chance.randint(*bound)) for bound in bounds)
        case _:
            return chance.choice(_ALPHABET) * chance.choice(_LENGTHS)


def blob(chance: Random) -> bytes:
    """Return bytes: those of a text, or any."""
    return text(chance).encode() if chance.random() < 0.5 else chance.randbytes(chance.choice((0, 1, 3, 4, 16, 300)))


def value(field: Field, chance: Random) -> Any:
    """Return a value for an element of a scalar field."""
    match field.cpp_type:
        case Field.CPPTYPE_STRING:
            return blob(chance) if field.type == Field.TYPE_BYTES else text(chance)
        case Field.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case Field.CPPTYPE_FLOAT | Field.CPPTYPE_DOUBLE:
            return chance.choice(_FLOATS) if chance.random() < 0.8 else chance.uniform(-1000, 1000)
        case Field.CPPTYPE_ENUM if chance.random() < 0.7:
            return chance.choice(field.enum_type.values).number
        case kind:
            low, high = _INTEGERS[kind]
            choices = [low, high, chance.randint(low, high), *(item for item in _SMALL if low <= item <= high)]
            return chance.choice(choices)
