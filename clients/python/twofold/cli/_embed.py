"""The command `twofold embed`."""

from pathlib import Path
from typing import Any

import click

from twofold._types.inference import Embedding
from twofold.cli._session import Session
from twofold.cli._texts import process_texts, text_options, write_records

_EXAMPLES = """
\b
Examples:
  twofold embed "Ada Lovelace was born in London."
  twofold embed --input texts.jsonl --output embeddings.jsonl
"""


@click.command(epilog=_EXAMPLES)
@text_options
@click.option("--tokens", is_flag=True, help="Also return one vector for each token.")
@click.pass_obj
def embed(
    session: Session,
    *,
    texts: tuple[str, ...],
    source: Path | None,
    output: Path | None,
    tokens: bool,
    concurrency: int,
) -> None:
    """
    Print the encoder's vectors for texts as JSON lines.

    Without TEXT and --input, each line of the standard input is a text.
    """
    with session.client() as client:

        def compute(batch: list[str]) -> list[dict[str, Any]]:
            embeddings = client.embed(batch, include_tokens=tokens)
            return [_to_record(text, embedding, tokens) for text, embedding in zip(batch, embeddings, strict=True)]

        write_records(process_texts(compute, texts, source, concurrency=concurrency, output=output), output)


def _to_record(text: str, embedding: Embedding, tokens: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"text": text, "embedding": embedding.pooled, "checkpoint": embedding.checkpoint_id}
    if tokens:
        record["tokens"] = [
            {"start": token.start, "end": token.end, "vector": token.vector} for token in embedding.tokens
        ]
    return record
