"""Open Inference requests with inconsistent tensors."""

from __future__ import annotations

import struct
from random import Random

from fuzzing.values import blob, text, value
from twofold.open_inference import open_inference_pb2 as pb
from twofold_server.api.wire.bytes_tensor import write_strings

_TYPES = ("BYTES", "BYTES", "BYTES", "FP32", "INT64", "BOOL", "bytes", "", "BF16", "TYPE_STRING")
_SIZES = (0, 1, 2, 3, 255, 256, 257, -1, 2**31, 2**63 - 1, -(2**63))
_LENGTHS = (0, 1, 5, 2**31 - 1, 2**31, 2**32 - 1)
_TYPED = ("bytes_contents", "int_contents", "bool_contents", "fp32_contents", "fp64_contents", "uint64_contents")


def lie(chance: Random) -> bytes:
    """Return a ModelInferRequest whose tensors differ from their metadata."""
    strings = [
        text(chance).encode() if chance.random() < 0.8 else blob(chance) for _ in range(chance.choice((0, 1, 1, 2, 9)))
    ]
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=chance.choice(("text", "text", "text", text(chance))),
        datatype=chance.choice(_TYPES),
        shape=_shape(len(strings), chance),
    )
    request = pb.ModelInferRequest(
        model_name=chance.choice(("twofold", "twofold", "twofold", text(chance))),
        model_version=chance.choice(("", "", "a", text(chance))),
        inputs=[tensor] * chance.choice((1, 1, 1, 0, 2)),
    )
    if chance.random() < 0.3:
        _type(request, strings, chance)
    if chance.random() < 0.8:
        request.raw_input_contents.extend([_raw(strings, chance)] * chance.choice((1, 1, 1, 2, 300)))
    for name in ("timeout", "offset_unit", "sequence_id", "binary_data_output", "classification"):
        if chance.random() < 0.1:
            kinds = pb.InferParameter.DESCRIPTOR.fields
            field = chance.choice(kinds)
            request.parameters[name].CopyFrom(pb.InferParameter(**{field.name: value(field, chance)}))
    if chance.random() < 0.2:
        request.outputs.add(name=chance.choice(("label", "label_score", "entities", "checkpoint_id", text(chance))))
    return request.SerializeToString(deterministic=True)


def _shape(count: int, chance: Random) -> list[int]:
    match chance.randrange(6):
        case 0 | 1 | 2:
            return [count]
        case 3:
            return [count, 1]
        case 4:
            return [chance.choice(_SIZES)]
        case _:
            return [chance.choice(_SIZES) for _ in range(chance.choice((0, 2, 3, 9, 2000)))]


def _raw(strings: list[bytes], chance: Random) -> bytes:
    """Write elements with their lengths, one of which may be wrong."""
    raw = write_strings(strings)
    match chance.randrange(6):
        case 0:
            return raw[: chance.randrange(len(raw) + 1)]
        case 1:
            return raw + blob(chance)
        case 2:
            return struct.pack("<I", chance.choice(_LENGTHS)) + raw[4:]
        case 3:
            return struct.pack(">I", len(raw)) + raw
        case _:
            return raw


def _type(request: pb.ModelInferRequest, strings: list[bytes], chance: Random) -> None:
    """Write contents into the typed fields of tensors."""
    for tensor in request.inputs:
        name = chance.choice(_TYPED)
        field = pb.InferTensorContents.DESCRIPTOR.fields_by_name[name]
        held = strings if name == "bytes_contents" else [value(field, chance) for _ in strings]
        getattr(tensor.contents, name).extend(held)
        tensor.contents.SetInParent()
