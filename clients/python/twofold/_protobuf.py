"""
Convert between the dataclasses of this package and protobuf messages.

A dataclass has the field names of its message, and the type of a field says how it is converted:
  X | None             optional                    tuple[X, ...]          repeated
  datetime             Timestamp                   tuple[X, ...] | None   a message that wraps a repeated field
  StrEnum              enum value by name          dataclass              message
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from twofold._types.inference import OffsetUnit
from twofold._types.job_events import (
    GuardCheck,
    JobEvent,
    Payload,
    PhaseEnded,
    Published,
    ScoreMeasured,
    StepProgress,
)
from twofold._types.job_report import Verdict
from twofold._types.jobs import Freeze, JobState, LabelPolicy, PromotePolicy
from twofold.v1 import adaptation_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# The meaning of zero and of values that only a newer server knows. For other enums it is None.
_DEFAULTS: Mapping[type[StrEnum], StrEnum] = {
    Freeze: Freeze.AUTO,
    JobState: JobState.RUNNING,
    LabelPolicy: LabelPolicy.APPEND,
    OffsetUnit: OffsetUnit.CODE_POINT,
    PromotePolicy: PromotePolicy.AUTO,
}


def from_proto(message: Message, kind: type[T]) -> T:
    """Convert *message* into a dataclass of type *kind*."""
    return kind(**{name: get(message) for name, get in _getters(kind)})  # type: ignore[arg-type]  # Classes are hashable.


def to_proto(value: Any, kind: type[M]) -> M:
    """Convert a dataclass into a message of type *kind*; fields that are None stay absent."""
    message = kind()
    _fill(message, value)
    return message


def enum_to_proto(enum: Any, member: StrEnum) -> Any:
    """Return the number of *member* in the protobuf *enum*, a descriptor."""
    return enum.values_by_name[_prefix(enum) + member.name].number


def enum_from_proto(enum: Any, number: int, kind: type[StrEnum]) -> StrEnum | None:
    """Return the member of *kind* for *number* in the protobuf *enum*, or the default for an unknown number."""
    value = enum.values_by_number.get(number)
    name = value.name.removeprefix(_prefix(enum)) if value else ""
    return kind.__members__.get(name, _DEFAULTS.get(kind))


def event_from_proto(message: adaptation_pb2.JobEvent) -> JobEvent:
    """Convert a message into a JobEvent."""
    return JobEvent(
        sequence=message.sequence,
        time=_to_datetime(message.time) if message.HasField("time") else None,
        phase=message.phase,
        message=message.message,
        payload=_payload(message),
        warning=message.warning,
    )


def event_to_proto(event: JobEvent) -> adaptation_pb2.JobEvent:
    """Convert a JobEvent into a message."""
    message = adaptation_pb2.JobEvent(sequence=event.sequence, phase=event.phase, message=event.message)
    if event.time is not None:
        message.time.FromDatetime(event.time)
    descriptors = message.DESCRIPTOR.fields_by_name
    match event.payload:
        case JobState() as state:
            message.state = enum_to_proto(descriptors["state"].enum_type, state)
        case Verdict() as verdict:
            message.verdict = enum_to_proto(descriptors["verdict"].enum_type, verdict)
        case StepProgress() as step:
            message.step.CopyFrom(to_proto(step, adaptation_pb2.StepProgress))
        case ScoreMeasured() as score:
            message.score.CopyFrom(to_proto(score, adaptation_pb2.ScoreMeasured))
        case GuardCheck() as check:
            message.guard.CopyFrom(to_proto(check, adaptation_pb2.GuardCheck))
        case PhaseEnded(seconds=seconds):
            message.phase_seconds = seconds
        case Published(checkpoint_id=checkpoint_id):
            message.checkpoint_id = checkpoint_id
        case None if event.warning:
            message.warning = True
    return message


def _payload(message: adaptation_pb2.JobEvent) -> Payload | None:
    descriptors = message.DESCRIPTOR.fields_by_name
    match message.WhichOneof("payload"):
        case "state":
            return JobState(
                enum_from_proto(descriptors["state"].enum_type, message.state, JobState) or JobState.RUNNING
            )
        case "verdict" if verdict := enum_from_proto(descriptors["verdict"].enum_type, message.verdict, Verdict):
            return Verdict(verdict)
        case "step":
            return from_proto(message.step, StepProgress)
        case "score":
            return from_proto(message.score, ScoreMeasured)
        case "guard":
            return from_proto(message.guard, GuardCheck)
        case "phase_seconds":
            return PhaseEnded(seconds=message.phase_seconds)
        case "checkpoint_id":
            return Published(checkpoint_id=message.checkpoint_id)
    return None


@cache
def _getters(kind: Any) -> tuple[tuple[str, Callable[[Message], Any]], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, _getter(field.name, hints[field.name])) for field in fields(kind))


def _getter(name: str, hint: Any) -> Callable[[Message], Any]:
    """Return a function that reads the field *name* of a message and converts it to the type *hint*."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        convert = _converter(get_args(hint)[0])
        if convert is _identity:  # Avoid one call for each number of a vector.
            return lambda message: tuple(getattr(message, name))
        if not optional:
            return lambda message: tuple(map(convert, getattr(message, name)))
        return lambda message: (
            tuple(map(convert, getattr(getattr(message, name), name))) if message.HasField(name) else None
        )
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda message: enum_from_proto(
            message.DESCRIPTOR.fields_by_name[name].enum_type, getattr(message, name), hint
        )
    convert = _converter(hint)
    if optional:
        return lambda message: convert(getattr(message, name)) if message.HasField(name) else None
    return lambda message: convert(getattr(message, name))


def _converter(kind: Any) -> Callable[[Any], Any]:
    if get_origin(kind) is Mapping:
        return dict
    if kind is datetime:
        return _to_datetime
    if isinstance(kind, type) and is_dataclass(kind):
        return lambda message: from_proto(message, kind)
    return _identity


def _identity(value: Any) -> Any:
    return value


def _to_datetime(timestamp: Any) -> datetime:
    time = timestamp.ToDatetime(tzinfo=UTC)
    assert isinstance(time, datetime)
    return time


def _fill(message: Message, value: Any) -> None:
    for name in (field.name for field in fields(value)):
        field_value = getattr(value, name)
        match field_value:
            case None:
                continue
            case StrEnum():
                setattr(message, name, enum_to_proto(message.DESCRIPTOR.fields_by_name[name].enum_type, field_value))
            case datetime():
                getattr(message, name).FromDatetime(field_value)
            case Mapping():
                getattr(message, name).update(field_value)
            case tuple():
                _extend(getattr(message, name), name, field_value)
            case _ if is_dataclass(field_value):
                getattr(message, name).SetInParent()  # Present even if all its fields are zero.
                _fill(getattr(message, name), field_value)
            case _:
                setattr(message, name, field_value)


def _extend(target: Any, name: str, values: tuple[Any, ...]) -> None:
    if isinstance(target, Message):  # It wraps a repeated field of the same name.
        target.SetInParent()
        target = getattr(target, name)
    for value in values:
        if is_dataclass(value):
            _fill(target.add(), value)
        else:
            target.append(value)


@cache
def _prefix(enum: Any) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")
