"""Requests of the Open Inference Protocol, and their responses."""

from __future__ import annotations

import numpy as np
from support import tiny_checkpoints
from twofold.open_inference import open_inference_pb2 as pb
from twofold_server.api.wire.bytes_tensor import read_strings, write_strings

TEXTS = list(tiny_checkpoints.TEXTS)


def ask(*texts, shape=None, typed=False, **fields):
    """Return a request."""
    strings = [text.encode() for text in texts or ["rain"]]
    tensor = {"name": "text", "datatype": "BYTES", "shape": shape or [len(strings)]}
    if typed:
        tensor["contents"] = {"bytes_contents": strings}
    return pb.ModelInferRequest(
        **{
            "model_name": "twofold",
            "inputs": [tensor],
            "raw_input_contents": [] if typed else [write_strings(strings)],
            **fields,
        }
    )


def read(response):
    """Return the outputs of a response by name."""
    actual = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        [count] = output.shape
        if output.datatype == "FP32":
            actual[output.name] = np.frombuffer(raw, "<f4").tolist()
        else:
            actual[output.name] = [string.decode() for string in read_strings(raw, count, output.name)]
        assert not output.HasField("contents")
    return actual
