"""The command `twofold predict`."""

import zlib
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from twofold._types.inference import Head, Prediction
from twofold.cli._session import Session
from twofold.cli._texts import process_texts, text_options, write_records

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_EXAMPLES = """
\b
Examples:
  twofold predict "Ada Lovelace was born in London."
  twofold predict --input texts.jsonl --output predictions.jsonl
  cat texts.txt | twofold predict --head ner
"""


@click.command(epilog=_EXAMPLES)
@text_options
@click.option(
    "--head",
    "heads",
    type=click.Choice([head.value for head in Head]),
    multiple=True,
    help="Return only the results of this head.  [default: both]",
)
@click.option(
    "--top-labels",
    default=1,
    show_default=True,
    metavar="N",
    help="Number of labels to return for each text, best first.",
)
@click.pass_obj
def predict(
    session: Session,
    *,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    heads: tuple[str, ...],
    top_labels: int,
    concurrency: int,
) -> None:
    """
    Classify texts and find their entities.

    Without TEXT and --input, each line of the standard input is a text.
    """
    with session.client() as client:

        def compute(batch: list[str]) -> list[tuple[str, Prediction]]:
            return list(zip(batch, client.predict(batch, heads=heads, top_labels=top_labels), strict=True))

        predictions = process_texts(compute, texts, source, concurrency=concurrency, output=output)
        if session.human_readable and not output:
            for text, prediction in predictions:
                session.console.print(_render(text, prediction))
        else:
            write_records((_to_record(text, prediction, heads, top_labels) for text, prediction in predictions), output)


def _to_record(text: str, prediction: Prediction, heads: tuple[str, ...], top_labels: int) -> dict[str, Any]:
    """Return a prediction as a JSON object; null means that the head was not requested."""
    classified = not heads or Head.CLASSIFIER in heads
    tagged = not heads or Head.NER in heads
    entities = [
        {"start": entity.start, "end": entity.end, "type": entity.type, "score": round(entity.score, 6)}
        for entity in prediction.entities
    ]
    record: dict[str, Any] = {
        "text": text,
        "label": prediction.label if classified else None,
        "entities": entities if tagged else None,
        "score": round(prediction.labels[0].score, 6) if prediction.labels else None,
        "checkpoint": prediction.checkpoint_id,
    }
    if top_labels > 1:
        record["labels"] = [{"label": label.label, "score": round(label.score, 6)} for label in prediction.labels]
    return record


def _render(text: str, prediction: Prediction) -> Text:
    """Return the labels, then the text with its entities in colour."""
    rendered = Text()
    for label in prediction.labels:
        rendered.append(label.label, style="bold").append(f" {label.score:.2f}  ", style="dim")
    position = 0
    for entity in prediction.entities:
        colour = _COLOURS[zlib.crc32(entity.type.encode()) % len(_COLOURS)]
        rendered.append(text[position : entity.start])
        rendered.append(text[entity.start : entity.end], style=f"bold {colour} underline")
        rendered.append(f"[{entity.type}]", style=colour)
        position = entity.end
    return rendered.append(text[position:])
