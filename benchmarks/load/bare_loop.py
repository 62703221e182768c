"""The bare loop: tokenizer, ONNX Runtime and decoding over the same texts, without a server.

    python -m benchmarks.load.bare_loop --checkpoint DIRECTORY --texts FILE [--batch 32] [--threads 2] [--seconds 5] [--split]

A batch is padded to its longest text; with --split it is split by length into passes, as in the server. The last line of
output is a JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from twofold_checkpoint.checkpoint import Checkpoint
from twofold_checkpoint.encoding import pad
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode_rows


@dataclass(frozen=True, slots=True)
class LoopResult:
    """The number of texts that the loop answered, and the time it took."""

    texts: int
    seconds: float
    cpu_seconds: float


def loop(engine: Engine, texts: list[str], *, batch_size: int, seconds: float, split: bool) -> LoopResult:
    """Answer texts in batches for some seconds, after three batches of warm-up."""
    batches = itertools.cycle([texts[start : start + batch_size] for start in range(0, len(texts), batch_size)])

    def answer(batch: list[str]) -> int:
        encodings = engine.encoder.encode(batch)
        windows = [window for encoding in encodings for window in encoding.windows]
        rows = iter(
            engine.run_windows(windows, HEAD_OUTPUTS, 1 << 30)
            if split
            else zip(*engine.run(*pad(windows, engine.encoder.settings.pad_id), HEAD_OUTPUTS), strict=True)
        )
        grouped = [list(itertools.islice(rows, len(encoding.windows))) for encoding in encodings]
        return len(decode_rows(encodings, grouped, engine.labels))

    for _ in range(3):
        answer(next(batches))
    answered, started_at, cpu_before = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started_at < seconds:
        answered += answer(next(batches))
    return LoopResult(answered, time.monotonic() - started_at, time.process_time() - cpu_before)


def main() -> None:
    """Run the loop and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="file with a JSON array of texts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--split", action="store_true")
    arguments = parser.parse_args()
    engine = Engine(Checkpoint.open(arguments.checkpoint), threads=arguments.threads)
    texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
    result = loop(engine, texts, batch_size=arguments.batch, seconds=arguments.seconds, split=arguments.split)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
