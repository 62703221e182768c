"""Data sets uploaded before their job."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twofold_checkpoint.examples import Example
from twofold_checkpoint.store import Store

from twofold_server.adaptation.dataset_writer import Contents, DatasetWriter, Part, move_dataset, read_contents
from twofold_server.errors import InvalidRequestError, UnknownNameError, Violation
from twofold_server.resources.cancellation import run_to_completion

_ID = re.compile(r"upload-[0-9A-Za-z-]{1,60}")
MAX_DISPLAY_NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Header:
    """First message of an upload, with its display name."""

    display_name: str


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """A batch of examples of an upload."""

    part: Part
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored data set: ``train.jsonl``, optionally ``dev.jsonl``, and their counts."""

    id: str
    path: Path
    contents: Contents


class Uploads:
    """Data sets under ``STORE/uploads/ID/``, each stored atomically."""

    def __init__(self, store: Store, *, max_examples: int) -> None:
        self._store = store
        self._root = store.root / "uploads"
        self._max_examples = max_examples

    async def receive(self, messages: AsyncIterator[Header | ExampleBatch]) -> Upload:
        """Check and store a stream of examples. An invalid example or a broken stream stores nothing."""
        with self._store.staging() as staged, DatasetWriter(staged, self._max_examples) as writer:
            first = True
            async for message in messages:
                if isinstance(message, ExampleBatch):
                    # To completion, or the removal of the directory would race with the writer.
                    await run_to_completion(asyncio.to_thread(writer.add, message.part, message.examples))
                elif not first:
                    raise InvalidRequestError(
                        Violation("header", "is not the first message; send it first, or leave it out")
                    )
                elif len(message.display_name) > MAX_DISPLAY_NAME_LENGTH:
                    description = f"has {len(message.display_name)} characters; write at most {MAX_DISPLAY_NAME_LENGTH}"
                    raise InvalidRequestError(Violation("header.display_name", description))
                else:
                    writer.contents.display_name = message.display_name
                first = False
            if not writer.contents.examples["train"]:
                raise InvalidRequestError(Violation("train", "is empty; send at least one training example"))
            contents = await run_to_completion(asyncio.to_thread(writer.finish))
            upload_id = f"upload-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
            await run_to_completion(asyncio.to_thread(move_dataset, staged, self._root / upload_id))
        return Upload(upload_id, self._root / upload_id, contents)

    def open(self, upload_id: str) -> Upload:
        """Return a stored data set. Raises UnknownNameError. Blocks."""
        path = self._root / upload_id
        # Only server-generated ids reach the file system.
        if not _ID.fullmatch(upload_id) or not path.is_dir():
            raise UnknownNameError(
                f"there is no upload {upload_id[:100]!r}; send the examples with UploadDataset first"
            )
        return Upload(upload_id, path, read_contents(path))
