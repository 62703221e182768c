"""Verify that a candidate's graph answers the protected task exactly as the base's graph does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from twofold_checkpoint.encoding import Encoding
from twofold_checkpoint.labels import LabelSet
from twofold_checkpoint.manifest import HeadName
from twofold_checkpoint.protocol.events import ExactVerified

from twofold_trainer.errors import ParityError
from twofold_trainer.export.onnx_export import Graph, decode_logits
from twofold_trainer.scoring.scorer import BATCH_SIZE
from twofold_trainer.stop import StopSignal

EXACT_TOLERANCE = 1e-5
"""Largest protected-logit difference between the base's and the candidate's graph under exact protection."""


def verify_exact(
    base: Path,
    candidate: Path,
    encodings: Sequence[Encoding],
    protected: HeadName,
    labels: tuple[LabelSet, LabelSet],
    *,
    pad_id: int,
    threads: int,
    stop: StopSignal,
) -> ExactVerified:
    """Compare the protected head's logits and answers of the graphs in two directories.

    *labels* are the label sets before and after. The tensors are equal, but graphs may be fused or threaded differently, so
    logits may differ by EXACT_TOLERANCE. No answer may differ. Raises ParityError with the first differing text.
    """
    old, new = Graph(base, threads=threads), Graph(candidate, threads=threads)
    output = 0 if protected == "classifier" else 1
    worst = 0.0
    ordered = sorted(encodings, key=lambda encoding: len(encoding.ids))
    for first in range(0, len(ordered), BATCH_SIZE):
        stop.check()
        batch = ordered[first : first + BATCH_SIZE]
        (before, mask), (after, _) = old.run(batch, pad_id), new.run(batch, pad_id)
        differences = np.abs(before[output] - after[output])
        if protected == "ner":
            differences = differences[mask.astype(bool)]
        worst = max(worst, float(differences.max(initial=0.0)))
        # The comparison fails for NaN.
        if not worst <= EXACT_TOLERANCE:
            raise ParityError(
                f"the {protected} head's logits differ by {worst:.2e} from the base checkpoint's, and protection is "
                f"exact; at most {EXACT_TOLERANCE:.0e} is allowed"
            )
        wanted_answers = decode_logits(batch, before[0], before[1], labels[0])
        for encoding, wanted, got in zip(
            batch, wanted_answers, decode_logits(batch, after[0], after[1], labels[1]), strict=True
        ):
            if protected == "classifier":
                same = [label.label for label in wanted.labels] == [label.label for label in got.labels]
            else:
                spans = [
                    [(entity.start, entity.end, entity.type) for entity in answer.entities] for answer in (wanted, got)
                ]
                same = spans[0] == spans[1]
            if not same:
                raise ParityError(
                    f"the {protected} head answers {encoding.text[:80]!r} differently than before, although protection is exact"
                )
    return ExactVerified(texts=len(ordered), max_error=worst)
