"""Build HTML and SVG. All text is escaped unless it is Markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"meta", "br"})
# Characters that could reorder or break the surrounding text: controls, bidirectional marks, line separators.
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ufeff\\ufffe\\uffff\\ud800-\\udfff]"
)


class Markup(str):
    """Text that is already markup. Only tag(), join() and trusted() create it."""

    __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element. Content is escaped unless it is Markup; attributes are always escaped.

    Attributes that are None or False are omitted. A trailing underscore of a name is dropped, others become hyphens.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(shown(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(content: object) -> Markup:
    """Join content: strings and numbers are escaped, Markup is not, None is omitted, and iterables are joined.

    Raises TypeError for anything else.
    """
    match content:
        case None:
            return Markup()
        case Markup():
            return content
        case str() | int() | float():
            return Markup(_escaped(shown(content)))
        case Iterable():
            return Markup("".join(map(join, content)))
    raise TypeError(f"cannot render {type(content).__name__} as markup; this is a bug")


def trusted(text: str) -> Markup:
    """Mark text of this package, such as the style sheet, as markup."""
    return Markup(text)


def shown(value: object) -> str:
    """Return a value as text with unsafe characters shown by their numbers, such as ⟦U+202E⟧."""
    if isinstance(value, float):
        return f"{value:g}"
    return _UNSAFE.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", str(value))


def _escaped(text: str) -> str:
    return html.escape(text)
