"""A fake of the independent scorer with the same commands. It compares answers exactly."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

HEADS = ("classifier", "ner")


def read(path: str) -> list[dict]:
    """Read JSON lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def spans(row: dict, types: list[str]) -> set:
    """Return a text's entities of the given types, or all."""
    return {
        (item["start"], item["end"], item["type"])
        for item in row["entities"] or ()
        if not types or item["type"] in types
    }


def answer(row: dict, head: str, types: list[str]) -> object:
    """Return a row's answer for a head."""
    return row["label"] if head == "classifier" else spans(row, types)


def main(what: str, *given: str) -> dict:
    """Run one of the scorer's three commands."""
    options = {name: value for name, value in pairwise(given) if name.startswith("--")}
    paths = [item for item in given if item.endswith(".jsonl")]
    types = options["--types"].split(",") if "--types" in options else []
    rows = list(zip(*map(read, paths), strict=True))
    if what == "same":
        differ = [sum(answer(a, head, []) != answer(b, head, []) for a, b in rows) for head in HEADS]
        return {"n": len(rows), "label_differs": differ[0], "spans_differ": differ[1]}
    if what == "flips":
        right = [
            [answer(gold, options["--head"], []) == answer(item, options["--head"], []) for item in rest]
            for gold, *rest in rows
        ]
        return {"negative": sum(a and not b for a, b in right), "positive": sum(b and not a for a, b in right)}
    head = options["--heads"]
    answers = [(answer(gold, head, types), answer(actual, head, types)) for gold, actual in rows]
    if head == "classifier":
        return {head: {"accuracy": sum(gold == actual for gold, actual in answers) / len(answers)}}
    total = sum(len(gold) + len(actual) for gold, actual in answers)
    return {head: {"f1": 2 * sum(len(gold & actual) for gold, actual in answers) / total if total else 0.0}}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
