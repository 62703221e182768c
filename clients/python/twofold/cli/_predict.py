"""Ask about texts."""

import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from twofold._types.inference import Head, Prediction
from twofold.cli._files import batches, read_texts, written_at_once
from twofold.cli._session import Session, json_line

T = TypeVar("T")

_BATCH = 32
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--input", "source", type=_FILE, help="Read JSON lines with a text each.")
@click.option("--output", "sink", type=_FILE, help="Write JSON lines here; the file appears when all is done.")
@click.option(
    "--head",
    "heads",
    type=click.Choice([one.value for one in Head]),
    multiple=True,
    help="Ask only this head; both if not given.",
)
@click.option("--top", default=1, show_default=True, help="Show so many labels with their scores.")
@click.option("--in-flight", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at a time.")
@click.pass_obj
def predict(
    session: Session,
    *,
    texts: tuple[str, ...],
    source: Path | None,
    sink: Path | None,
    heads: tuple[str, ...],
    top: int,
    in_flight: int,
) -> None:
    """
    Label TEXTS and find their entities.

    Without any texts, each line of the standard input is one.
    """
    with session.client() as client:

        def ask(batch: list[str]) -> list[tuple[str, Prediction]]:
            return list(zip(batch, client.predict(batch, heads=heads, top_labels=top), strict=True))

        asked = _texts(texts, source)
        answers = _with_progress(_in_order(ask, asked, in_flight), asked, sink)
        if session.for_people and not sink:
            for text, one in answers:
                session.console.print(_shown(text, one))
        else:
            _write((_record(text, one, heads, top) for text, one in answers), sink)


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--input", "source", type=_FILE, help="Read JSON lines with a text each.")
@click.option("--output", "sink", type=_FILE, help="Write JSON lines here; the file appears when all is done.")
@click.option("--tokens", is_flag=True, help="Give each token's vector, too.")
@click.option("--in-flight", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests at a time.")
@click.pass_obj
def embed(
    session: Session, *, texts: tuple[str, ...], source: Path | None, sink: Path | None, tokens: bool, in_flight: int
) -> None:
    """Print the encoder's features of TEXTS as JSON lines."""
    with session.client() as client:

        def ask(batch: list[str]) -> list[dict[str, Any]]:
            found = client.embed(batch, include_tokens=tokens)
            return [
                {"text": text, "embedding": one.pooled, "checkpoint": one.checkpoint_id}
                | (
                    {"tokens": [{"start": t.start, "end": t.end, "vector": t.vector} for t in one.tokens]}
                    if tokens
                    else {}
                )
                for text, one in zip(batch, found, strict=True)
            ]

        asked = _texts(texts, source)
        _write(_with_progress(_in_order(ask, asked, in_flight), asked, sink), sink)


def _texts(texts: tuple[str, ...], source: Path | None) -> Iterable[str]:
    """Return the texts from where the user put them."""
    if texts and source:
        raise click.UsageError("give texts or --input, not both")
    if source:
        return read_texts(source)
    if texts:
        return texts
    if sys.stdin.isatty():
        raise click.UsageError("give texts as arguments, --input FILE, or lines on the standard input")
    return (line.rstrip("\n") for line in sys.stdin)


def _with_progress(answers: Iterator[T], asked: Iterable[str], sink: Path | None) -> Iterator[T]:
    """Pass *answers* on, with a progress bar if they go to a file and a person waits."""
    if sink is None or not sys.stderr.isatty():
        yield from answers
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(answers, total=len(asked) if isinstance(asked, Sized) else None, description="texts")


def _in_order(ask: Callable[[list[str]], list[T]], texts: Iterable[str], in_flight: int) -> Iterator[T]:
    """Ask for batches, *in_flight* at a time, and give the answers in the order of the texts."""
    waiting: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(in_flight) as pool:
        try:
            for batch in batches(texts, _BATCH):
                waiting.append(pool.submit(ask, batch))
                if len(waiting) == in_flight:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _write(records: Iterable[dict[str, Any]], sink: Path | None) -> None:
    if not sink:
        for record in records:
            click.echo(json_line(record))
        return
    with written_at_once(sink) as file:
        for record in records:
            file.write(json_line(record) + "\n")


def _record(text: str, found: Prediction, heads: tuple[str, ...], top: int) -> dict[str, Any]:
    """Return the line of a prediction; null says that the head was not asked."""
    labelled, tagged = not heads or Head.CLASSIFIER in heads, not heads or Head.NER in heads
    record: dict[str, Any] = {
        "text": text,
        "label": found.label if labelled else None,
        "entities": [
            {"start": e.start, "end": e.end, "type": e.type, "score": round(e.score, 6)} for e in found.entities
        ]
        if tagged
        else None,
        "score": round(found.labels[0].score, 6) if found.labels else None,
        "checkpoint": found.checkpoint_id,
    }
    if top > 1:
        record["labels"] = [{"label": one.label, "score": round(one.score, 6)} for one in found.labels]
    return record


def _shown(text: str, found: Prediction) -> Text:
    """Return a prediction for a person: the labels, then the text with its entities in colour."""
    shown = Text()
    for one in found.labels:
        shown.append(one.label, style="bold").append(f" {one.score:.2f}  ", style="dim")
    at = 0
    for entity in found.entities:
        colour = _COLOURS[zlib.crc32(entity.type.encode()) % len(_COLOURS)]
        shown.append(text[at : entity.start])
        shown.append(text[entity.start : entity.end], style=f"bold {colour} underline")
        shown.append(f"[{entity.type}]", style=colour)
        at = entity.end
    return shown.append(text[at:])
