"""Texts in, results out: what `predict` and `embed` share."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold.cli._files import atomic_write, read_texts
from twofold.cli._output import json_line

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_BATCH_SIZE = 32


def text_options(command: F) -> F:
    """Add the argument and the options that say where texts come from and where results go."""
    file = click.Path(dir_okay=False, path_type=Path)
    for decorate in (
        click.option(
            "--concurrency",
            default=4,
            show_default=True,
            type=click.IntRange(1, 64),
            metavar="N",
            help=f"Requests in flight at a time; each holds up to {_BATCH_SIZE} texts.",
        ),
        click.option("--output", type=file, help="Write JSON lines to this file once all texts are answered."),
        click.option("--input", "source", type=file, help='Read texts from JSON lines: {"text": ...}.'),
        click.argument("texts", nargs=-1, metavar="[TEXT]..."),
    ):
        command = decorate(command)
    return command


def process_texts(
    compute: Callable[[list[str]], list[T]],
    texts: tuple[str, ...],
    source: Path | None,
    *,
    concurrency: int,
    output: Path | None,
) -> Iterator[T]:
    """
    Yield the results of *compute*, which takes a batch, in the order of the texts.

    The texts are *texts*, the lines of *source* or the lines of the standard input. A progress bar is shown if the results
    go to a file and the standard error is a terminal.
    """
    texts_to_send = _select_texts(texts, source)
    results = _map_batches(compute, texts_to_send, concurrency)
    if output is None or not sys.stderr.isatty():
        yield from results
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = len(texts_to_send) if isinstance(texts_to_send, Sized) else None
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(results, total=total, description="texts")


def write_records(records: Iterable[dict[str, Any]], output: Path | None) -> None:
    """Write JSON lines to *output*, or to the standard output if it is None."""
    if output is None:
        for record in records:
            click.echo(json_line(record))
        return
    with atomic_write(output) as file:
        for record in records:
            file.write(json_line(record) + "\n")


def _select_texts(texts: tuple[str, ...], source: Path | None) -> Iterable[str]:
    if texts and source:
        raise click.UsageError("give texts or --input, not both")
    if source:
        return read_texts(source)
    if texts:
        return texts
    if sys.stdin.isatty():
        raise click.UsageError("give texts as arguments, with --input FILE, or as lines on the standard input")
    return (line.rstrip("\n") for line in sys.stdin)


def _map_batches(compute: Callable[[list[str]], list[T]], texts: Iterable[str], concurrency: int) -> Iterator[T]:
    pending: deque[Future[list[T]]] = deque()
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for batch in _batches(texts):
                pending.append(pool.submit(compute, batch))
                if len(pending) == concurrency:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_SIZE:
            yield batch
            batch = []
    if batch:
        yield batch
