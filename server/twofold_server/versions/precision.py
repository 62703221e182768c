"""Precision of a served checkpoint: as configured, or the fastest on this machine that passed its gate."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from twofold_checkpoint.manifest import Manifest, Precision

from twofold_server.errors import SwapError
from twofold_server.inference.engine import HEAD_OUTPUTS, Engine

SHAPES = ((8, 16), (4, 64))
"""Shapes (rows, tokens) of the timed passes: short commands, and sentences."""
ROUNDS = 5
"""Number of runs per engine and shape. The fastest counts, since other load can only slow a pass down."""


def check_precision(manifest: Manifest, precision: Precision) -> None:
    """Raise SwapError if the checkpoint has no graph in *precision*, or if that graph did not pass the gate."""
    if precision in manifest.precisions:
        return
    remedy = f"start the server with precision {' or '.join(manifest.precisions)}, or with auto"
    for graph in manifest.reduced:
        if graph.precision == precision:
            raise SwapError(f"its {precision} graph did not pass the gate; {remedy}. {graph.reason}")
    raise SwapError(f"this checkpoint has no {precision} graph; {remedy}")


def have_same_precisions(manifest: Manifest, candidate_manifest: Manifest) -> bool:
    """Return whether two checkpoints have the same backbone and precisions, and so the same fastest precision."""
    return (manifest.backbone, manifest.hidden_size, manifest.precisions) == (
        candidate_manifest.backbone,
        candidate_manifest.hidden_size,
        candidate_manifest.precisions,
    )


def time_passes(engines: Sequence[Engine]) -> list[float]:
    """Return the seconds per engine for one pass of each shape. The engines alternate."""
    fastest = np.full((len(engines), len(SHAPES)), np.inf)
    for _ in range(ROUNDS):
        for index, shape in enumerate(SHAPES):
            for number, engine in enumerate(engines):
                rows, length = shape[0], min(shape[1], engine.encoder.settings.max_tokens)
                ids = np.full((rows, length), engine.encoder.settings.pad_id, np.int64)
                started_at = time.perf_counter()
                engine.run(ids, np.ones_like(ids), HEAD_OUTPUTS)
                fastest[number, index] = min(fastest[number, index], time.perf_counter() - started_at)
    return [float(seconds) for seconds in fastest.sum(axis=1)]
