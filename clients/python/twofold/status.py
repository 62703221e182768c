"""
The machine-readable half of an error: google.rpc.Status with its details, both ways.

The messages are built here, in a pool of their own, so that neither side needs googleapis-common-protos and a program
that does have it sees no conflict.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

__all__ = ["DOMAIN", "METADATA_KEY", "FieldViolation", "Status", "decode_status", "encode_status"]

METADATA_KEY = "grpc-status-details-bin"
"""The trailing metadata key that carries an encoded status."""

DOMAIN = "twofold"
"""The ErrorInfo domain of every reason that this service gives."""

_NANOS = 1_000_000_000
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field of a request that was refused, and why."""

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An error as it travels: *code* is a gRPC status number, *retry_after* is in seconds."""

    code: int
    message: str
    reason: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def encode_status(
    code: int,
    message: str,
    *,
    reason: str,
    violations: Iterable[FieldViolation] = (),
    retry_after: float | None = None,
    metadata: Mapping[str, str] = _NOTHING,
) -> bytes:
    """Encode an error as the value of METADATA_KEY; *retry_after* is in seconds."""
    status = _STATUS(code=code, message=message)
    _attach(status, _ERROR_INFO(reason=reason, domain=DOMAIN, metadata=dict(metadata)))
    if bad_fields := [{"field": one.field, "description": one.description} for one in violations]:
        _attach(status, _BAD_REQUEST(field_violations=bad_fields))
    if retry_after is not None:
        seconds, nanos = divmod(round(retry_after * _NANOS), _NANOS)
        _attach(status, _RETRY_INFO(retry_delay={"seconds": seconds, "nanos": nanos}))
    return bytes(status.SerializeToString(deterministic=True))


def decode_status(encoded: bytes) -> Status:
    """Decode the value of METADATA_KEY, passing over details of other types; raise ValueError if it is no status."""
    try:
        status = _STATUS.FromString(encoded)
        details = [_unpack(detail) for detail in status.details]
    except DecodeError as error:
        raise ValueError(f"{METADATA_KEY} holds no google.rpc.Status: {error}") from error
    reason, metadata, violations, retry_after = "", {}, [], None
    for detail in details:
        if isinstance(detail, _ERROR_INFO):
            reason, metadata = detail.reason, dict(detail.metadata)
        elif isinstance(detail, _BAD_REQUEST):
            violations += [FieldViolation(field=v.field, description=v.description) for v in detail.field_violations]
        elif isinstance(detail, _RETRY_INFO):
            retry_after = (detail.retry_delay.seconds * _NANOS + detail.retry_delay.nanos) / _NANOS
    return Status(
        code=status.code,
        message=status.message,
        reason=reason,
        violations=tuple(violations),
        retry_after=retry_after,
        metadata=metadata,
    )


def _attach(status: Any, detail: Any) -> None:
    status.details.add(type_url=_URL + detail.DESCRIPTOR.full_name, value=detail.SerializeToString(deterministic=True))


def _unpack(packed: Any) -> Any:
    of_type = _DETAILS.get(packed.type_url.rpartition("/")[2])
    return of_type.FromString(packed.value) if of_type else None


def _build_messages() -> dict[str, Any]:
    """Describe google/rpc/status.proto and error_details.proto, as far as they are used, and make their classes."""
    file = descriptor_pb2.FileDescriptorProto(
        name="twofold/status.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=[any_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name],
    )
    message, text, integer = (getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{t}") for t in _FIELD_TYPES)
    one, many = (getattr(descriptor_pb2.FieldDescriptorProto, f"LABEL_{label}") for label in ("OPTIONAL", "REPEATED"))
    fields: dict[str, list[tuple[str, Any, Any, str | None]]] = {
        "Status": [
            ("code", integer, one, None),
            ("message", text, one, None),
            ("details", message, many, ".google.protobuf.Any"),
        ],
        "RetryInfo": [("retry_delay", message, one, ".google.protobuf.Duration")],
        "BadRequest": [("field_violations", message, many, ".google.rpc.BadRequest.FieldViolation")],
        "BadRequest.FieldViolation": [("field", text, one, None), ("description", text, one, None)],
        "ErrorInfo": [
            ("reason", text, one, None),
            ("domain", text, one, None),
            ("metadata", message, many, ".google.rpc.ErrorInfo.MetadataEntry"),
        ],
        "ErrorInfo.MetadataEntry": [("key", text, one, None), ("value", text, one, None)],
    }
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for path, described in fields.items():
        parent, _, name = path.rpartition(".")
        made[path] = made[parent].nested_type.add(name=name) if parent else file.message_type.add(name=name)
        for number, (field_name, kind, label, type_name) in enumerate(described, 1):
            made[path].field.add(name=field_name, number=number, type=kind, label=label, type_name=type_name)
    made["ErrorInfo.MetadataEntry"].options.map_entry = True
    pool = descriptor_pool.DescriptorPool()
    for needed in (any_pb2, duration_pb2):
        pool.AddSerializedFile(needed.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    names = [f"google.rpc.{path}" for path in fields if "." not in path]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


_FIELD_TYPES = ("MESSAGE", "STRING", "INT32")
_URL = "type.googleapis.com/"
_DETAILS = _build_messages()
_STATUS = _DETAILS["google.rpc.Status"]
_RETRY_INFO = _DETAILS["google.rpc.RetryInfo"]
_BAD_REQUEST = _DETAILS["google.rpc.BadRequest"]
_ERROR_INFO = _DETAILS["google.rpc.ErrorInfo"]
