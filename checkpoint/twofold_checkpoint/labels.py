"""The labels and entity types that name the rows of both heads."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

OUTSIDE = 0
"""Index of the tag O. Type *t* (from 0) has the tags 1 + 2t (B, begins a span) and 2 + 2t (I, continues a span)."""


class LabelSet(msgspec.Struct, frozen=True, kw_only=True):
    """The classifier's labels and the NER head's entity types, in row order.

    The order is append-only: rows never move, so the old rows of a head stay valid when it grows.
    """

    labels: tuple[str, ...]
    entity_types: tuple[str, ...]

    def __post_init__(self) -> None:
        for kind, names in (("label", self.labels), ("entity type", self.entity_types)):
            if len(set(names)) != len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                raise ValueError(f"{kind} {twice[0]!r} occurs twice; each {kind} names one row")
            if any(not name or name != name.strip() for name in names):
                raise ValueError(f"a {kind} is empty or has white space around it")

    @property
    def tags(self) -> tuple[str, ...]:
        """The BIO tags of the NER head's rows: ``O, B-first, I-first, B-second, ...``."""
        return ("O", *(f"{prefix}-{name}" for name in self.entity_types for prefix in "BI"))

    def append(self, *, labels: Iterable[str] = (), entity_types: Iterable[str] = ()) -> LabelSet:
        """Return a label set with the new names appended in sorted order."""
        return LabelSet(
            labels=self.labels + tuple(sorted(set(labels) - set(self.labels))),
            entity_types=self.entity_types + tuple(sorted(set(entity_types) - set(self.entity_types))),
        )


def begin_tag(type_index: int) -> int:
    """Return the index of the tag that begins a span of the type."""
    return 1 + 2 * type_index


def inside_tag(type_index: int) -> int:
    """Return the index of the tag that continues a span of the type."""
    return 2 + 2 * type_index
