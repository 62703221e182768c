"""The part of PromQL that the tests need: the metrics and labels that a query names."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_STRING = re.compile(r'"[^"]*"')
_WINDOW = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)(?![\w:])\s*(?:\{([^}]*)\}|(?!\s*[({]))")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "group_left", "group_right"})


@dataclass
class Selector:
    """A metric of a query, and its label matchers."""

    name: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)


def selectors(query: str) -> list[Selector]:
    """Return the metrics that a query names."""
    bare = _GROUPING.sub(" ", _WINDOW.sub(" ", query))
    return [
        Selector(name, [(label, sign, value) for label, sign, value in _MATCHER.findall(braces)])
        for name, braces in _SELECTOR.findall(bare)
        if name not in _WORDS
    ]


def grouping_labels(query: str) -> set[str]:
    """Return the labels that a query groups or joins by."""
    listed = _GROUPING.findall(_STRING.sub('""', query))
    return {label.strip() for entry in listed for label in entry.split(",") if label.strip()}
