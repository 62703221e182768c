"""LitServe, as its reference and the docstrings of LitServer.run set it up for throughput.

Batching (max_batch_size, batch_timeout), fast_queue=True (ZeroMQ, recommended above 100 requests a second), workers per
device (recommended for a CPU: as many as it has cores; tried against one worker with all cores), API servers as processes,
one for each worker (its default). Requests are batched in the worker. A batch_timeout of zero polls without a pause and
takes a core for it, so a short one is used. Callers use HTTP, the only way in.

https://lightning.ai/docs/litserve/features/batching
https://lightning.ai/docs/litserve/api-reference/litserver
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import litserve

from benchmarks.peer_servers.predictor import load_predictor
from benchmarks.peer_servers.settings import read_settings


class TwoHeads(litserve.LitAPI):
    """Answer batches of texts."""

    def setup(self, device: str) -> None:  # noqa: ARG002 -- LitServe's signature.
        """Load the model in this worker."""
        settings = read_settings()
        self.predictor = load_predictor(settings)

    def decode_request(self, request) -> str:  # noqa: ANN001 -- LitServe would take the type for the body's schema.
        """Take the text out of a request."""
        text: str = request["texts"][0]
        return text

    def batch(self, inputs: Sequence[str]) -> list[str]:
        """Keep texts as they are: the tokenizer takes a list."""
        return list(inputs)

    def predict(self, texts: list[str]) -> list[Any]:
        """Answer a batch."""
        return self.predictor(texts)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Keep answers as they are."""
        return output

    def encode_response(self, output: Any) -> list[Any]:
        """Answer a request of one text."""
        return [output]


if __name__ == "__main__":
    settings = read_settings()
    api = TwoHeads(max_batch_size=settings.batch, batch_timeout=settings.wait_ms / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=settings.workers, fast_queue=True)
    server.run(host="127.0.0.1", port=settings.port, generate_client_file=False, log_level="error")
