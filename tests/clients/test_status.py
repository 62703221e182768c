import pytest
from hypothesis import given
from hypothesis import strategies as st
from twofold.status import FieldViolation, Status, decode_status, encode_status

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    code=st.integers(0, 16),
    message=texts,
    reason=texts,
    violations=st.lists(st.builds(FieldViolation, field=texts, description=texts), max_size=3).map(tuple),
    retry_after=st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000),
    metadata=st.dictionaries(texts, texts, max_size=3),
)
def test_round_trip(*, code, message, reason, violations, retry_after, metadata):
    """Decoding returns what was encoded."""
    details = {"reason": reason, "violations": violations, "retry_after": retry_after, "metadata": metadata}

    decoded = decode_status(encode_status(code, message, **details))

    assert decoded == Status(code=code, message=message, **details)


def test_zero_delay_is_present():
    """A retry delay of zero allows a retry; it does not mean that there is no delay."""
    assert decode_status(encode_status(8, "full", reason="OVERLOADED", retry_after=0.0)).retry_after == 0.0


def test_canonical_bytes():
    """The bytes are those that other gRPC libraries send."""
    expected = b"\x08\x05\x12\x02no\x1a\x3f\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12\x13\x0a\x08NO_MODEL\x12\x07twofold"

    assert encode_status(5, "no", reason="NO_MODEL") == expected


def test_unknown_details_are_ignored():
    """A detail of an unknown type is ignored; the others are decoded."""
    unknown = b"\x1a\x0f\x0a\x0bx.y/New.One\x12\x00"

    assert decode_status(encode_status(3, "bad", reason="R") + unknown).reason == "R"


@pytest.mark.parametrize("garbage", [b"\xff", b"\x1a\xff"])
def test_garbage(garbage):
    """Bytes that are not a status are an error."""
    with pytest.raises(ValueError, match=r"does not contain a google\.rpc\.Status"):
        decode_status(garbage)
