"""The bare loop: tokenizer, ONNX Runtime and decoding over the same texts, without a server around them.

    python -m benchmarks.load.bare_loop --checkpoint DIRECTORY --texts FILE [--batch 32] [--threads 2] [--seconds 5] [--cut]

With --cut a batch is not padded as a whole but cut by length into passes, as the server does it. The last line of output
is a JSON object.
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
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine, decode


@dataclass(frozen=True, slots=True)
class Looped:
    """What the loop did."""

    texts: int
    seconds: float
    cpu_seconds: float


def loop(engine: Engine, texts: list[str], *, batch: int, seconds: float, cut: bool) -> Looped:
    """Answer texts, *batch* at a time, for some seconds after one pass over a few of them."""
    groups = itertools.cycle([texts[start : start + batch] for start in range(0, len(texts), batch)])

    def answer(some: list[str]) -> int:
        encodings = engine.encoder.encode(some)
        windows = [window for encoding in encodings for window in encoding.windows]
        rows = iter(
            engine.run_windows(windows, HEAD_OUTPUTS, 1 << 30)
            if cut
            else zip(*engine.run(*pad(windows, engine.encoder.settings.pad_id), HEAD_OUTPUTS), strict=True)
        )
        grouped = [list(itertools.islice(rows, len(encoding.windows))) for encoding in encodings]
        return len(decode(encodings, grouped, engine.labels))

    for _ in range(3):
        answer(next(groups))
    answered, begun, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - begun < seconds:
        answered += answer(next(groups))
    return Looped(answered, time.monotonic() - begun, time.process_time() - cpu)


def main() -> None:
    """Loop, and say what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cut", action="store_true")
    arguments = parser.parse_args()
    engine = Engine(Checkpoint.open(arguments.checkpoint), threads=arguments.threads)
    texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
    looped = loop(engine, texts, batch=arguments.batch, seconds=arguments.seconds, cut=arguments.cut)
    print(json.dumps(asdict(looped)))


if __name__ == "__main__":
    main()
