"""HTML and SVG in which nothing is markup but what this module writes."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_VOID = frozenset({"meta", "br"})
# What would turn the text around it, or what no page may hold: controls, bidirectional marks, line separators.
_ODD = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ufeff\\ufffe\\uffff\\ud800-\\udfff]"
)


class Markup(str):
    """Text that is markup already. Only tag(), join() and trusted() make it."""

    __slots__ = ()


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Write an element. Content and attributes are escaped unless they are Markup.

    An attribute that is None or False is left out; an underscore at the end of its name falls away, others are hyphens.
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
    """Put content together: strings are escaped, Markup is not, None is nothing, and what can be iterated is joined."""
    match content:
        case None:
            return Markup()
        case Markup():
            return content
        case str() | int() | float():
            return Markup(_escaped(shown(content)))
        case Iterable():
            return Markup("".join(map(join, content)))
    raise TypeError(f"{type(content).__name__} is no content. This is a bug.")


def trusted(text: str) -> Markup:
    """Take our own text, such as a style sheet, for markup."""
    return Markup(text)


def shown(value: object) -> str:
    """Return a value as text that cannot turn or hide what stands around it: odd characters are shown by number."""
    if isinstance(value, float):
        return f"{value:g}"
    return _ODD.sub(lambda match: f"⟦U+{ord(match[0]):04X}⟧", str(value))


def _escaped(text: str) -> str:
    return html.escape(text)
