"""Messages of the Open Inference Protocol. See docs/open-inference.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
import numpy as np
from twofold.open_inference import open_inference_pb2 as pb
from twofold_checkpoint.decoding import Entity, Prediction

from twofold_server.api.wire.bytes_tensor import read_strings, write_strings
from twofold_server.api.wire.inference import check_lengths, shared_checkpoint_id
from twofold_server.api.wire.offsets import OffsetUnit, offset_converter
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import InvalidRequestError, UnknownNameError, Violation, raise_if_invalid
from twofold_server.inference.predictor import Answers

MODEL = "twofold"
PLATFORM = "twofold_onnxruntime"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name and datatype. Every tensor has one dimension, the texts."""

    name: str
    datatype: str


INPUTS = (Tensor("text", "BYTES"),)
OUTPUTS = (
    Tensor("label", "BYTES"),
    Tensor("label_score", "FP32"),
    Tensor("entities", "BYTES"),
    Tensor("checkpoint_id", "BYTES"),
)
_OUTPUTS_BY_NAME = {output.name: output for output in OUTPUTS}
_UNITS: Sequence[OffsetUnit] = get_args(OffsetUnit)

# Parameters that would change the answer are rejected; other unknown parameters are ignored.
_SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
_MEMORY_PARAMETERS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_UNSUPPORTED_PARAMETERS = {
    **dict.fromkeys(_SEQUENCE_PARAMETERS, "sequences are not supported, since texts are independent; leave it out"),
    **dict.fromkeys(_MEMORY_PARAMETERS, "shared memory is not supported; use raw contents"),
    "classification": 'is not supported; request the outputs "label" and "label_score" instead',
}


@dataclass(frozen=True, slots=True)
class InferCall:
    """A checked ModelInferRequest. *version* is a checkpoint id or empty, *timeout* is in seconds or infinite."""

    id: str
    texts: list[str]
    outputs: Sequence[Tensor]
    version: str
    unit: OffsetUnit
    timeout: float

    def requests_any(self, *names: str) -> bool:
        """Return whether one of these outputs is requested."""
        return any(output.name in names for output in self.outputs)


def check_model(name: str, field: str) -> None:
    """Raise UnknownNameError unless *name* is the model's."""
    if name != MODEL:
        raise UnknownNameError(f"{field}: unknown model {name[:100]!r}; use {MODEL!r}")


def read_infer(request: pb.ModelInferRequest, limits: LimitSettings) -> InferCall:
    """Read and check a request. Raises UnknownNameError, or InvalidRequestError with every invalid field."""
    check_model(request.model_name, "model_name")
    violations: list[Violation] = []
    unit, timeout = _read_unit(request.parameters, violations), _read_timeout(request.parameters, violations)
    raise_if_invalid(
        itertools.chain(
            _check_parameters(request.parameters, "parameters"),
            _check_inputs(request, limits),
            _check_outputs(request.outputs),
            violations,
        )
    )
    outputs = [_OUTPUTS_BY_NAME[output.name] for output in request.outputs] or OUTPUTS
    return InferCall(request.id, _read_texts(request, limits), outputs, request.model_version, unit, timeout)


def write_infer(call: InferCall, answers: Answers[Prediction]) -> pb.ModelInferResponse:
    """Return the response with raw contents, the only form in which tritonclient reads FP32."""
    response = pb.ModelInferResponse(
        model_name=MODEL, model_version=shared_checkpoint_id(answers.checkpoint_ids), id=call.id
    )
    for output in call.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=[len(call.texts)])
        response.raw_output_contents.append(_write_output(output.name, call, answers))
    return response


def write_metadata(versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Return the metadata of the model's tensors."""
    inputs, outputs = (
        [
            pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=[-1])
            for tensor in tensors
        ]
        for tensors in (INPUTS, OUTPUTS)
    )
    return pb.ModelMetadataResponse(name=MODEL, versions=versions, platform=PLATFORM, inputs=inputs, outputs=outputs)


def _check_inputs(request: pb.ModelInferRequest, limits: LimitSettings) -> Iterator[Violation]:
    """Yield the violations of everything but the elements."""
    if not request.inputs:
        yield Violation("inputs", 'is empty; send one tensor "text" of BYTES')
    for index, tensor in enumerate(request.inputs):
        field = f"inputs[{index}]"
        if tensor.name != "text":
            yield Violation(f"{field}.name", f'unknown input {tensor.name[:100]!r}; use "text"')
        elif index:
            yield Violation(field, 'is a second "text" tensor; send one tensor with all texts')
        if tensor.datatype != "BYTES":
            yield Violation(f"{field}.datatype", f'invalid type {tensor.datatype[:100]!r}; use "BYTES"')
        yield from _check_shape(list(tensor.shape), limits, f"{field}.shape")
        yield from _check_parameters(tensor.parameters, f"{field}.parameters")
        if request.raw_input_contents and tensor.HasField("contents"):
            yield Violation(f"{field}.contents", "is set in addition to raw_input_contents; send only one of them")
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        yield Violation(
            "raw_input_contents",
            f"has {len(request.raw_input_contents)} entries, but inputs has {len(request.inputs)}; send one entry per input",
        )


def _check_shape(shape: list[int], limits: LimitSettings, field: str) -> Iterator[Violation]:
    shown = f"{shape[:8]}" if len(shape) <= 8 else f"{shape[:8]} and more"
    if len(shape) not in {1, 2} or shape[1:] not in ([], [1]):
        yield Violation(field, f"{shown} is not a list of texts; use [n] or [n, 1] for n texts")
    elif shape[0] < 0:
        yield Violation(field, f"{shown} is negative; use the number of texts")
    elif shape[0] == 0:
        yield Violation(field, f"{shown} is empty; send at least one text")
    elif shape[0] > limits.max_texts:
        yield Violation(field, f"{shown} is too long; send at most {limits.max_texts} texts per request")


def _check_outputs(outputs: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Iterator[Violation]:
    seen: set[str] = set()
    for index, output in enumerate(outputs):
        field = f"outputs[{index}]"
        if output.name not in _OUTPUTS_BY_NAME:
            names = ", ".join(_OUTPUTS_BY_NAME)
            yield Violation(f"{field}.name", f"unknown output {output.name[:100]!r}; use one of {names}")
        elif output.name in seen:
            yield Violation(f"{field}.name", f"{output.name!r} is requested twice; remove it here")
        seen.add(output.name)
        yield from _check_parameters(output.parameters, f"{field}.parameters")


def _check_parameters(parameters: Mapping[str, pb.InferParameter], field: str) -> Iterator[Violation]:
    for name in parameters:
        if name in _UNSUPPORTED_PARAMETERS:
            yield Violation(f"{field}[{name!r}]", _UNSUPPORTED_PARAMETERS[name])


def _value(parameters: Mapping[str, pb.InferParameter], name: str) -> Any:
    """Return the value of a parameter, or None if it is missing or empty."""
    if name not in parameters:
        return None
    choice = parameters[name].WhichOneof("parameter_choice")
    return getattr(parameters[name], choice) if choice else None


def _read_unit(parameters: Mapping[str, pb.InferParameter], violations: list[Violation]) -> OffsetUnit:
    requested = _value(parameters, "offset_unit")
    for unit in _UNITS:
        if requested == unit:
            return unit
    if requested is not None:
        names = ", ".join(_UNITS)
        violations.append(
            Violation("parameters['offset_unit']", f"unknown unit {str(requested)[:100]!r}; use one of {names}")
        )
    return "code_point"


def _read_timeout(parameters: Mapping[str, pb.InferParameter], violations: list[Violation]) -> float:
    requested = _value(parameters, "timeout")
    if requested is None or requested == 0:
        return float("inf")
    if not isinstance(requested, int) or isinstance(requested, bool) or requested < 0:
        violations.append(
            Violation(
                "parameters['timeout']",
                f"invalid time {str(requested)[:100]!r}; use whole microseconds, or 0 for no timeout",
            )
        )
        return float("inf")
    return requested / 1e6


def _read_texts(request: pb.ModelInferRequest, limits: LimitSettings) -> list[str]:
    [tensor] = request.inputs
    count = tensor.shape[0]
    if request.raw_input_contents:
        field = "raw_input_contents[0]"
        strings = read_strings(request.raw_input_contents[0], count, field)
    else:
        field = "inputs[0].contents.bytes_contents"
        element_count = len(tensor.contents.bytes_contents)
        if element_count != count:
            raise InvalidRequestError(
                Violation(field, f"has {element_count} elements, but the shape says {count}; make them equal")
            )
        strings = list(tensor.contents.bytes_contents)
    raise_if_invalid(_check_utf8(strings, field))
    texts = [string.decode() for string in strings]
    raise_if_invalid(check_lengths(texts, limits, field))
    return texts


def _check_utf8(strings: Sequence[bytes], field: str) -> Iterator[Violation]:
    for index, string in enumerate(strings):
        try:
            string.decode()
        except UnicodeDecodeError as error:
            byte = string[error.start]
            message = f"is not UTF-8: byte 0x{byte:02x} at {error.start}; encode the text as UTF-8"
            yield Violation(f"{field}[{index}]", message)


def _write_output(name: str, call: InferCall, answers: Answers[Prediction]) -> bytes:
    if name == "checkpoint_id":
        return write_strings(checkpoint_id.encode() for checkpoint_id in answers.checkpoint_ids)
    if name == "entities":
        pairs = zip(call.texts, answers.answers, strict=True)
        return write_strings(_write_entities(text, answer.entities, call.unit) for text, answer in pairs)
    best = [answer.labels[0] if answer.labels else None for answer in answers.answers]
    if name == "label_score":
        return np.asarray([label.score if label else 0 for label in best], "<f4").tobytes()
    return write_strings(label.label.encode() if label else b"" for label in best)


def _write_entities(text: str, entities: Sequence[Entity], unit: OffsetUnit) -> bytes:
    offset = offset_converter(text, unit)
    return msgspec.json.encode(
        [{"start": offset(e.start), "end": offset(e.end), "type": e.type, "score": e.score} for e in entities]
    )
