"""The outside judge, run as a command on predictions that were written as JSON lines."""

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

FIGURE_OF: dict[HeadName, str] = {"classifier": "accuracy", "ner": "f1"}


@dataclass(frozen=True, slots=True)
class Scorer:
    """Point at the scorer's file."""

    path: Path

    def gold(self, gold: Path, found: Path, head: HeadName, types: Collection[str] | None = None) -> dict[str, Any]:
        """Score predictions of one head; *types* limits entities to those that the texts were searched for."""
        chosen = [] if types is None else ["--types", ",".join(sorted(types))]
        return self._run("gold", str(gold), str(found), "--heads", head, *chosen)[head]

    def flips(self, gold: Path, old: Path, new: Path, head: HeadName) -> dict[str, Any]:
        """Count what was right and is wrong now, and the reverse."""
        return self._run("flips", str(gold), str(old), str(new), "--head", head)

    def changed(self, old: Path, new: Path, head: HeadName) -> int:
        """Count the texts that are answered differently."""
        return int(self._run("same", str(old), str(new))["label_differs" if head == "classifier" else "spans_differ"])

    def _run(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, str(self.path), *arguments]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def write_gold(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as the scorer reads them: null where not annotated."""
    _write(
        path,
        (
            {
                "text": one.text,
                "label": one.label,
                "entities": None if one.entities is None else [_span(span) for span in one.entities],
            }
            for one in examples
        ),
    )


def write_predictions(path: Path, examples: Iterable[Example], answers: Iterable[Prediction]) -> None:
    """Write answers beside the texts that they belong to."""
    _write(
        path,
        (
            {
                "text": example.text,
                "label": answer.labels[0].label if answer.labels else None,
                "entities": [_span(entity) for entity in answer.entities],
            }
            for example, answer in zip(examples, answers, strict=True)
        ),
    )


def _span(one: Any) -> dict[str, Any]:
    return {"start": one.start, "end": one.end, "type": one.type}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
