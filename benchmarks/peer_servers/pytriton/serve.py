"""NVIDIA Triton through PyTriton, as their pages on batching and on model instances set it up.

Dynamic batching in Triton's own scheduler (max_batch_size, max_queue_delay_microseconds; preferred sizes are left unset, as
Triton's page advises), the @batch decorator, and one inference callable for each model instance; one instance with all cores
is tried against one for each core. Callables are threads of one Python process. Metrics and strict validation of
outputs are off. Callers use Triton's gRPC endpoint; the HTTP one is there because PyTriton asks it whether the model is
ready. PyTriton's stub loads the libpython of the system's own Python 3.11, so its environment is made from that.

https://triton-inference-server.github.io/pytriton/latest/binding_configuration/
https://triton-inference-server.github.io/pytriton/latest/binding_models/
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/batcher.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peer_servers.predictor import load_predictor
from benchmarks.peer_servers.settings import Settings, read_settings


def make(settings: Settings) -> Callable[..., Any]:
    """Load a model instance."""
    predictor = load_predictor(settings)

    @batch
    def predict(text: Any) -> list[Any]:
        predictions = predictor([content.decode() for content in text[:, 0]])
        return [np.array([[msgspec.json.encode(prediction)] for prediction in predictions], dtype=object)]

    return predict


if __name__ == "__main__":
    settings = read_settings()
    config = TritonConfig(
        allow_http=True,
        http_address="127.0.0.1",
        http_port=settings.port + 1,
        grpc_address="127.0.0.1",
        grpc_port=settings.port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="twofold",
            infer_func=[make(settings) for _ in range(settings.workers)],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=settings.batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(1000 * settings.wait_ms)),
            ),
            strict=False,
        )
        triton.serve()
