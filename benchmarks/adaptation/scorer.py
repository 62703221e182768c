"""The independent scorer, run as a command on predictions in JSON lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.examples import Example
from twofold_checkpoint.manifest import HeadName

METRICS: dict[HeadName, str] = {"classifier": "accuracy", "ner": "f1"}
"""The scorer's name of each head's metric."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """Run the scorer's script."""

    path: Path

    def score(
        self, gold: Path, predictions: Path, head: HeadName, types: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Score predictions of one head; *types* restricts entities to the types that the texts are annotated for."""
        restriction = [] if types is None else ["--types", ",".join(sorted(types))]
        return self._run("gold", str(gold), str(predictions), "--heads", head, *restriction)[head]

    def flips(self, gold: Path, old: Path, new: Path, head: HeadName) -> dict[str, Any]:
        """Count the answers that changed from right to wrong and from wrong to right."""
        return self._run("flips", str(gold), str(old), str(new), "--head", head)

    def changed(self, old: Path, new: Path, head: HeadName) -> int:
        """Count the texts whose answers differ."""
        return int(self._run("same", str(old), str(new))["label_differs" if head == "classifier" else "spans_differ"])

    def _run(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, str(self.path), *arguments]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def write_gold(path: Path, examples: Iterable[Example]) -> None:
    """Write examples in the scorer's format: null where a text is not annotated."""
    _write(
        path,
        (
            {
                "text": example.text,
                "label": example.label,
                "entities": None if example.entities is None else [_span(span) for span in example.entities],
            }
            for example in examples
        ),
    )


def write_predictions(path: Path, examples: Iterable[Example], predictions: Iterable[Prediction]) -> None:
    """Write predictions with their texts in the scorer's format."""
    _write(
        path,
        (
            {
                "text": example.text,
                "label": prediction.labels[0].label if prediction.labels else None,
                "entities": [_span(entity) for entity in prediction.entities],
            }
            for example, prediction in zip(examples, predictions, strict=True)
        ),
    )


def _span(span: Any) -> dict[str, Any]:
    return {"start": span.start, "end": span.end, "type": span.type}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
