"""The error model of gRPC: google.rpc.Status with its details, encoded and decoded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

__all__ = ["DOMAIN", "METADATA_KEY", "FieldViolation", "Status", "decode_status", "encode_status"]

METADATA_KEY = "grpc-status-details-bin"
"""The key of the trailing metadata that contains an encoded status."""

DOMAIN = "twofold"
"""The domain of every ErrorInfo that this service sends."""

_NANOSECONDS = 1_000_000_000
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """An invalid field of a request, and why it is invalid."""

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """
    The status of a failed call.

    *code* is the number of a gRPC status code. *retry_after* is in seconds, and None if the server sent no RetryInfo.
    """

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
    metadata: Mapping[str, str] = _NO_METADATA,
) -> bytes:
    """Encode a status as the value of METADATA_KEY; *retry_after* is in seconds."""
    status = status_pb2.Status(code=code, message=message)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)]
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(field=violation.field, description=violation.description)
    if bad_request.field_violations:
        details.append(bad_request)
    if retry_after is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(round(retry_after * _NANOSECONDS))
        details.append(retry_info)
    for detail in details:
        status.details.add().Pack(detail, deterministic=True)
    return bytes(status.SerializeToString(deterministic=True))


def decode_status(encoded: bytes) -> Status:
    """Decode the value of METADATA_KEY and ignore details of other types; raise ValueError if it is not a status."""
    error_info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    may_retry = False
    try:
        status = status_pb2.Status.FromString(encoded)
        for detail in status.details:
            detail.Unpack(error_info)
            detail.Unpack(bad_request)
            may_retry |= detail.Unpack(retry_info)
    except DecodeError as error:
        raise ValueError(f"{METADATA_KEY} does not contain a google.rpc.Status: {error}") from error
    return Status(
        code=status.code,
        message=status.message,
        reason=error_info.reason,
        violations=tuple(
            FieldViolation(field=violation.field, description=violation.description)
            for violation in bad_request.field_violations
        ),
        retry_after=retry_info.retry_delay.ToNanoseconds() / _NANOSECONDS if may_retry else None,
        metadata=dict(error_info.metadata),
    )
