"""Put load on a server from a process of its own: a closed loop, N calls in flight.

    python benchmarks/calling/caller.py --target HOST:PORT --texts FILE [--in-flight 64] [--size 1] [--seconds 5]

FILE holds a JSON array of texts. Each call carries --size texts. Requests are serialised beforehand and answers are
parsed, so that the caller takes as little as it can of the cores that it shares with the server. The last line of output
is a JSON object: what was answered, in which time, and what it cost this process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
from twofold.v1 import inference_pb2 as pb

METHOD = "/twofold.v1.InferenceService/Predict"


@dataclass(frozen=True, slots=True)
class Called:
    """What a closed loop saw. Latencies are in milliseconds; *codes* counts the calls that failed by status."""

    texts: int
    """Texts answered within *seconds*."""
    seconds: float
    all_texts: int
    """Texts answered, those of the warm-up and the last ones included: what the server's CPU seconds went to."""
    cpu_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    codes: dict[str, int]


async def call(target: str, texts: list[str], *, in_flight: int, size: int, seconds: float) -> Called:
    """Keep *in_flight* calls out for some seconds, after a tenth of that to warm up."""
    groups = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
    requests = itertools.cycle([pb.PredictRequest(texts=group).SerializeToString() for group in groups])
    latencies: list[float] = []
    codes: dict[str, int] = {}
    async with grpc.aio.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)]) as channel:
        predict = channel.unary_unary(METHOD, response_deserializer=pb.PredictResponse.FromString)
        first = time.monotonic() + seconds / 10
        last = first + seconds

        async def keep_calling() -> tuple[int, int]:
            answered = answered_in_time = 0
            while (sent := time.monotonic()) < last:
                try:
                    response = await predict(next(requests))
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] = codes.get(error.code().name, 0) + 1
                    continue
                received = time.monotonic()
                answered += len(response.predictions)
                if first <= received <= last:
                    answered_in_time += len(response.predictions)
                    latencies.append(1000 * (received - sent))
            return answered_in_time, answered

        before = time.process_time()
        counts = await asyncio.gather(*(keep_calling() for _ in range(in_flight)))
        cpu = time.process_time() - before
    latencies.sort()
    p50, p95, p99 = (latencies[min(len(latencies) - 1, int(share * len(latencies)))] for share in (0.5, 0.95, 0.99))
    in_time, answered = (sum(column) for column in zip(*counts, strict=True))
    return Called(in_time, seconds, answered, cpu, p50, p95, p99, codes)


def main() -> None:
    """Call, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    called = asyncio.run(
        call(
            arguments.target,
            json.loads(arguments.texts.read_text(encoding="utf-8")),
            in_flight=arguments.in_flight,
            size=arguments.size,
            seconds=arguments.seconds,
        )
    )
    print(json.dumps(asdict(called)))


if __name__ == "__main__":
    main()
