"""Every method of the server, with valid requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fuzzing.values import JOB, UPLOAD
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from twofold.open_inference import open_inference_pb2 as open_pb
from twofold.v1 import adaptation_pb2, checkpoints_pb2, inference_pb2
from twofold_server.api.wire.bytes_tensor import write_strings
from twofold_server.security.authorization import REQUIRED_SCOPES

_FILES = (inference_pb2, adaptation_pb2, checkpoints_pb2, open_pb, health_pb2, reflection_pb2)
_EXAMPLES = {"train": [{"text": "sunny", "label": "a_weather"}, {"text": "a song", "label": "a_music"}]}
_TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1]}
_GOOD = {
    "Predict": [{"texts": ["rain in oslo today", "play a song"], "top_labels": 2, "offset_unit": 2}],
    "PredictStream": [{"request": {"texts": ["rain"]}}],
    "Embed": [{"texts": ["rain"], "include_tokens": True}],
    "Adapt": [
        {"dataset": {"inline": _EXAMPLES}, "head": 1},
        {"dataset": {"upload_id": UPLOAD}, "head": 1, "freeze": 3, "promote": 2, "hyperparameters": {"epochs": 1}},
        {
            "dataset": {
                "inline": {
                    "train": [{"text": "in oslo", "entities": {"entities": [{"start": 3, "end": 7, "type": "place"}]}}]
                },
                "annotated_types": ["place"],
            },
            "head": 2,
            "protection": {"statistical": {"margin": 2.0}},
            "max_runtime": {"seconds": 60},
            "request_id": "7f1f",
        },
    ],
    "UploadDataset": [{"header": {"display_name": "good"}}, {"train": {"examples": _EXAMPLES["train"]}}],
    "GetJob": [{"job_id": JOB}],
    "WatchJob": [{"job_id": JOB}],
    "CancelJob": [{"job_id": JOB}],
    "GetReport": [{"job_id": JOB, "format": 1}, {"job_id": JOB, "format": 2}],
    "ListJobs": [{"page_size": 3}],
    "GetCheckpoint": [{"checkpoint": "a"}],
    "PromoteCheckpoint": [{"checkpoint": "a"}, {"checkpoint": "b"}],
    "DeleteCheckpoint": [{"checkpoint_id": "d"}],
    "ListAliasChanges": [{"page_size": 3}],
    "ModelInfer": [
        {"model_name": "twofold", "inputs": [_TENSOR], "raw_input_contents": [write_strings([b"rain"])]},
        {"model_name": "twofold", "inputs": [{**_TENSOR, "contents": {"bytes_contents": [b"rain"]}}]},
    ],
    "ModelReady": [{"name": "twofold"}],
    "ModelMetadata": [{"name": "twofold"}],
    "ModelConfig": [{"name": "twofold"}],
    "ModelStatistics": [{"name": "twofold"}],
    "RepositoryIndex": [{"ready": True}],
    "RepositoryModelLoad": [
        {"model_name": "b"},
        {"model_name": "twofold", "parameters": {"version": {"string_param": "a"}}},
    ],
    "Check": [{"service": "twofold.v1.InferenceService"}],
    "ServerReflectionInfo": [
        {"file_containing_symbol": "inference.GRPCInferenceService"},
        {"file_by_filename": "twofold/v1/inference.proto"},
        {"all_extension_numbers_of_type": "google.protobuf.FieldOptions"},
        {"file_containing_extension": {"containing_type": "google.protobuf.FieldOptions", "extension_number": 7}},
        {"list_services": ""},
    ],
}
"""What works, by a method's name. Others are asked with an empty message."""


@dataclass(frozen=True)
class Method:
    """A method by its path. *request* is None if its messages are unknown here."""

    path: str
    request: Descriptor | None
    streams_requests: bool
    streams_responses: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def good(self) -> list[Message]:
        """Valid requests; for a stream, all of one call."""
        kind = next(kind for file in _FILES for kind in (getattr(file, self.request.name, None),) if kind)
        return [kind(**fields) for fields in _GOOD.get(self.name, [{}])]

    @property
    def is_open_ended(self) -> bool:
        """Whether its responses may never end."""
        return self.name in {"Watch", "WatchJob"}


def _all_methods() -> Iterator[Method]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                yield Method(path, method.input_type, method.client_streaming, method.server_streaming)


_described = {method.path: method for method in _all_methods()}
METHODS: dict[str, Method] = {
    path: _described.get(path) or Method(path, None, path.endswith("StreamInfer"), path.endswith("StreamInfer"))
    for path in sorted(REQUIRED_SCOPES)
}
"""Triton's methods that are only refused have no message."""
