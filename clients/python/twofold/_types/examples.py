"""Annotated texts, the training data of an adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A typed, half-open span of a text, in code points."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """
    An annotated text. None means not annotated; an empty tuple means that there are no entities.

    Example(text="Hi", label="greeting")             # the label is known, the entities are not
    Example(text="Hi", entities=())                  # the text has no entities
    """

    text: str
    label: str | None = None
    entities: tuple[Span, ...] | None = None

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Example":
        """
        Create an example from {"text", "label", "entities": [{"start", "end", "type"}]}; only "text" is required.

        Other keys are ignored. Raise ValueError with the field, its value and the fix.
        """
        text = _field(record, "text", str, "a string")
        entities = _field(record, "entities", list, "a list or null", optional=True)
        return cls(
            text=text,
            label=_field(record, "label", str, "a string or null", optional=True),
            entities=None
            if entities is None
            else tuple(_span(entity, index, len(text)) for index, entity in enumerate(entities)),
        )


def _span(record: Any, index: int, length: int) -> Span:
    path = f"entities[{index}]"
    if not isinstance(record, Mapping):
        raise ValueError(f'{path} is {record!r}; write {{"start", "end", "type"}}')  # noqa: TRY004 - it is the value of a file
    span = Span(
        start=_field(record, "start", int, "an integer", within=path),
        end=_field(record, "end", int, "an integer", within=path),
        type=_field(record, "type", str, "a string", within=path),
    )
    if not 0 <= span.start < span.end:
        raise ValueError(f"{path} goes from {span.start} to {span.end}; write 0 <= start < end")
    if span.end > length:
        raise ValueError(f"{path} ends at {span.end}, but the text has {length} code points; write end <= {length}")
    return span


def _field(
    record: Mapping[str, Any], name: str, kind: type, expected: str, *, within: str = "", optional: bool = False
) -> Any:
    path = f"{within}.{name}" if within else name
    value = record.get(name)
    if value is None and optional:
        return None
    if value is None:
        raise ValueError(f"{path} is missing; write {expected}")
    # A bool is an int in Python, but `"start": true` is a mistake.
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{path} is {value!r}; write {expected}")  # noqa: TRY004 - as above
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{path} is {value!r}, which contains half a surrogate pair; write complete characters")
    return value
