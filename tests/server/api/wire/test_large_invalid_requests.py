"""Requests of megabytes with millions of faults: the check stops after the first ones."""

from __future__ import annotations

from typing import Any

import pytest
from twofold.open_inference import open_inference_pb2 as open_pb
from twofold.v1 import adaptation_pb2, inference_pb2
from twofold_server.api.wire.adaptation import read_adapt
from twofold_server.api.wire.inference import read_predict
from twofold_server.api.wire.open_inference import read_infer
from twofold_server.api.wire.open_inference_extensions import read_load
from twofold_server.config.settings import LimitSettings
from twofold_server.errors import InvalidRequestError

MANY = 100_000
LIMITS = LimitSettings()


def adapt(**dataset: Any) -> adaptation_pb2.AdaptRequest:
    """Return a request that is valid except for its data set."""
    train = [adaptation_pb2.Example(text="rain", label="weather")]
    return adaptation_pb2.AdaptRequest(head=1, dataset={"inline": {"train": train}, **dataset})


def infer(**fields: Any) -> open_pb.ModelInferRequest:
    """Return a request for the model."""
    return open_pb.ModelInferRequest(model_name="twofold", **fields)


@pytest.mark.parametrize(
    ("read", "request_", "field"),
    [
        (read_predict, inference_pb2.PredictRequest(texts=["rain"], heads=[99] * MANY), "heads"),
        (read_predict, inference_pb2.PredictRequest(texts=["rain"], heads=[1] * MANY), "heads"),
        (read_predict, inference_pb2.PredictRequest(texts=["rain"] * MANY), "texts"),
        (read_infer, infer(inputs=[open_pb.ModelInferRequest.InferInputTensor()] * MANY), "inputs[0].name"),
        (read_infer, infer(outputs=[open_pb.ModelInferRequest.InferRequestedOutputTensor()] * MANY), "inputs"),
        (
            read_infer,
            infer(
                inputs=[
                    {
                        "name": "text",
                        "datatype": "BYTES",
                        "shape": [256],
                        "contents": {"bytes_contents": [b"\xff"] * 256},
                    }
                ]
            ),
            "inputs[0].contents.bytes_contents[0]",
        ),
        (
            read_load,
            open_pb.RepositoryModelLoadRequest(model_name="a", parameters={str(n): {} for n in range(MANY)}),
            "parameters[",
        ),
        (read_adapt, adapt(annotated_types=[""] * MANY), "dataset.annotated_types"),
        (read_adapt, adapt(annotated_types=["place"] * MANY), "dataset.annotated_types"),
        (read_adapt, adapt(annotated_types=["x" * 101]), "dataset.annotated_types[0]"),
        (read_adapt, adapt(inline={"train": [adaptation_pb2.Example()] * MANY}), "dataset.inline.train[0].text"),
    ],
)
def test_the_first_of_many_faults_are_reported(read: Any, request_: Any, field: str) -> None:
    """A request with many faults is rejected with at most twenty violations."""
    takes_config = read in {read_predict, read_infer}

    with pytest.raises(InvalidRequestError) as refused:
        read(request_, LIMITS) if takes_config else read(request_)

    assert refused.value.violations[0].field.startswith(field)
    assert len(refused.value.violations) <= 20
    assert len(str(refused.value)) < 10_000
