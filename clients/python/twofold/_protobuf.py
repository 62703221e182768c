"""
Values of this package to protobuf messages and back; beside the methods, nothing else knows protobuf.

A value's fields carry the names of its message's fields, so one rule serves every type:
  X | None             absent or present           tuple[X, ...]          repeated
  datetime             Timestamp                   tuple[X, ...] | None   a message that wraps a repeated field
  StrEnum              the enum's value by name    dataclass              a message
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from twofold._types.examples import Example
from twofold._types.inference import OffsetUnit
from twofold._types.job_events import (
    GuardLook,
    JobEvent,
    Payload,
    PhaseEnded,
    Published,
    ScoreMeasured,
    StepProgress,
)
from twofold._types.jobs import (
    Freeze,
    JobState,
    LabelPolicy,
    PromotePolicy,
    Verdict,
)
from twofold.v1 import adaptation_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)

# What zero and the values of a newer server mean, as the contract says. Elsewhere they mean None.
_FALLBACK: Mapping[type[StrEnum], StrEnum] = {
    Freeze: Freeze.AUTO,
    JobState: JobState.RUNNING,
    LabelPolicy: LabelPolicy.APPEND,
    OffsetUnit: OffsetUnit.CODE_POINT,
    PromotePolicy: PromotePolicy.AUTO,
}


def read(message: Message, of: type[T]) -> T:
    """Return *message* as a value of type *of*."""
    return of(**{name: get(message) for name, get in _readers(of)})  # type: ignore[arg-type]  # Classes are hashable.


def write(value: Any, of: type[M]) -> M:
    """Return *value* as a message of type *of*; fields that are None stay absent."""
    message = of()
    _fill(message, value)
    return message


def enum_number(enum: Any, member: StrEnum) -> Any:
    """Return the number of *member* in the protobuf *enum*, a descriptor, for use where the stubs want an enum value."""
    return enum.values_by_name[_prefix(enum) + member.name].number


def enum_member(enum: Any, number: int, of: type[StrEnum]) -> StrEnum | None:
    """Return the member of *of* for *number* in the protobuf *enum*, or what an unknown number means."""
    value = enum.values_by_number.get(number)
    name = value.name.removeprefix(_prefix(enum)) if value else ""
    return of.__members__.get(name, _FALLBACK.get(of))


def read_example(message: adaptation_pb2.Example) -> Example:
    """Return *message* as an Example."""
    return read(message, Example)


def read_event(message: adaptation_pb2.JobEvent) -> JobEvent:
    """Return *message* as a JobEvent."""
    return JobEvent(
        sequence=message.sequence,
        time=_moment(message.time) if message.HasField("time") else None,
        phase=message.phase,
        message=message.message,
        payload=_payload(message),
        warning=message.warning,
    )


def write_event(event: JobEvent) -> adaptation_pb2.JobEvent:
    """Return *event* as a message."""
    message = adaptation_pb2.JobEvent(sequence=event.sequence, phase=event.phase, message=event.message)
    if event.time is not None:
        message.time.FromDatetime(event.time)
    kinds = message.DESCRIPTOR.fields_by_name
    match event.payload:
        case JobState() as state:
            message.state = enum_number(kinds["state"].enum_type, state)
        case Verdict() as verdict:
            message.verdict = enum_number(kinds["verdict"].enum_type, verdict)
        case StepProgress() as step:
            message.step.CopyFrom(write(step, adaptation_pb2.StepProgress))
        case ScoreMeasured() as score:
            message.score.CopyFrom(write(score, adaptation_pb2.ScoreMeasured))
        case GuardLook() as look:
            message.guard.CopyFrom(write(look, adaptation_pb2.GuardLook))
        case PhaseEnded(seconds=seconds):
            message.phase_seconds = seconds
        case Published(checkpoint_id=checkpoint_id):
            message.checkpoint_id = checkpoint_id
        case None if event.warning:
            message.warning = True
    return message


def _payload(message: adaptation_pb2.JobEvent) -> Payload | None:
    kinds = message.DESCRIPTOR.fields_by_name
    match message.WhichOneof("payload"):
        case "state":
            return JobState(enum_member(kinds["state"].enum_type, message.state, JobState) or JobState.RUNNING)
        case "verdict" if found := enum_member(kinds["verdict"].enum_type, message.verdict, Verdict):
            return Verdict(found)
        case "step":
            return read(message.step, StepProgress)
        case "score":
            return read(message.score, ScoreMeasured)
        case "guard":
            return read(message.guard, GuardLook)
        case "phase_seconds":
            return PhaseEnded(seconds=message.phase_seconds)
        case "checkpoint_id":
            return Published(checkpoint_id=message.checkpoint_id)
    return None


@cache
def _readers(of: Any) -> tuple[tuple[str, Callable[[Message], Any]], ...]:
    hints = get_type_hints(of)
    return tuple((one.name, _reader(one.name, hints[one.name])) for one in fields(of))


def _reader(name: str, hint: Any) -> Callable[[Message], Any]:
    """Return the function that takes the field *name*, of type *hint*, from a message."""
    optional = isinstance(hint, types.UnionType)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        convert = _converter(get_args(hint)[0])
        if convert is _same:  # Vectors are long; spare a call for each number.
            return lambda message: tuple(getattr(message, name))
        if not optional:
            return lambda message: tuple(map(convert, getattr(message, name)))
        return lambda message: (
            tuple(map(convert, getattr(getattr(message, name), name))) if message.HasField(name) else None
        )
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda message: enum_member(
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
        return _moment
    if isinstance(kind, type) and is_dataclass(kind):
        return lambda message: read(message, kind)
    return _same


def _same(value: Any) -> Any:
    return value


def _moment(stamp: Any) -> datetime:
    moment = stamp.ToDatetime(tzinfo=UTC)
    assert isinstance(moment, datetime)
    return moment


def _fill(message: Message, value: Any) -> None:
    for name in (one.name for one in fields(value)):
        given = getattr(value, name)
        match given:
            case None:
                continue
            case StrEnum():
                setattr(message, name, enum_number(message.DESCRIPTOR.fields_by_name[name].enum_type, given))
            case datetime():
                getattr(message, name).FromDatetime(given)
            case Mapping():
                getattr(message, name).update(given)
            case tuple():
                _extend(getattr(message, name), name, given)
            case _ if is_dataclass(given):
                getattr(message, name).SetInParent()  # Present, even if every field has its zero value.
                _fill(getattr(message, name), given)
            case _:
                setattr(message, name, given)


def _extend(target: Any, name: str, given: tuple[Any, ...]) -> None:
    if isinstance(target, Message):
        target.SetInParent()
        target = getattr(target, name)
    for one in given:
        if is_dataclass(one):
            _fill(target.add(), one)
        else:
            target.append(one)


@cache
def _prefix(enum: Any) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")
