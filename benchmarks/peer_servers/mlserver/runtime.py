"""A custom inference runtime of MLServer, as its page on them writes one: texts come as BYTES, answers go as BYTES."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import msgspec
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

from benchmarks.peer_servers.predictor import load_predictor
from benchmarks.peer_servers.settings import read_settings


class TwoHeads(MLModel):
    """Answer batches of texts."""

    async def load(self) -> bool:
        """Load the model in this process."""
        settings = read_settings()
        self.predictor = load_predictor(settings)
        self.thread = ThreadPoolExecutor(1) if settings.offload else None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer what the adaptive batcher has put together."""
        texts = [text.decode() if isinstance(text, bytes) else text for text in payload.inputs[0].data]
        if self.thread:
            answers = await asyncio.get_running_loop().run_in_executor(self.thread, self.predictor, texts)
        else:
            answers = self.predictor(texts)
        encoded = [msgspec.json.encode(answer) for answer in answers]
        output = ResponseOutput(name="answer", datatype="BYTES", shape=[len(encoded), 1], data=encoded)
        return InferenceResponse(model_name=self.name, outputs=[output])
