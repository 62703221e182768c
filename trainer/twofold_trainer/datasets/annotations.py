"""Which examples are annotated for a head."""

from __future__ import annotations

from collections.abc import Sequence

from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName


def annotated_for(examples: Sequence[Example], head: HeadName) -> list[Example]:
    """Return the examples that are annotated for *head*."""
    return [
        example for example in examples if (example.label if head == "classifier" else example.entities) is not None
    ]
