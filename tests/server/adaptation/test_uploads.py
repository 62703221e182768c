"""Uploads are stored completely or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.job_specs import job_spec
from support.scripted_trainer import Harness, finish, over
from twofold_checkpoint.errors import ExampleError
from twofold_checkpoint.examples import Example, Span, read_examples
from twofold_checkpoint.labels import LabelSet
from twofold_server.adaptation.dataset_writer import MAX_NAME_LENGTH, MAX_NAMES, Contents, DatasetWriter
from twofold_server.adaptation.uploads import ExampleBatch, Header, Upload
from twofold_server.adaptation.validation import validate_request
from twofold_server.errors import InvalidRequestError, OverloadedError, UnknownNameError
from twofold_server.jobs.model import JobState

GOOD = Example(text="where is it", label="where")
SPAN = Example(text="to Rome", entities=(Span(start=3, end=7, type="city"),))
BAD = Example(text="to Rome", entities=(Span(start=3, end=8, type="city"),))


async def upload(harness: Harness, *messages: Header | ExampleBatch | BaseException) -> Upload:
    """Send messages; an exception among them breaks the stream."""

    async def stream() -> AsyncIterator[Header | ExampleBatch]:
        for message in messages:
            if isinstance(message, BaseException):
                raise message
            yield message

    return await harness.uploads.receive(stream())


def left_behind(harness: Harness) -> list[Path]:
    """Return the files in the store other than its checkpoint."""
    return [path for name in ("uploads", "staging", "jobs") for path in harness.store.root.glob(f"{name}/*")]


async def test_an_upload_is_stored_as_it_was_sent(harness: Harness) -> None:
    """Examples keep their order and parts over many messages, and the upload's id finds them."""
    sent = await upload(
        harness,
        Header("tickets of May"),
        ExampleBatch("train", [GOOD, SPAN]),
        ExampleBatch("dev", [SPAN]),
        ExampleBatch("train", []),
        ExampleBatch("train", [GOOD]),
    )

    actual = harness.uploads.open(sent.id)

    assert list(read_examples(actual.path / "train.jsonl")) == [GOOD, SPAN, GOOD]
    assert list(read_examples(actual.path / "dev.jsonl")) == [SPAN]
    assert actual.contents == sent.contents
    assert actual.contents.examples == {"train": 3, "dev": 1}
    assert actual.contents.annotated == {"classifier": 2, "ner": 1}
    assert actual.contents.labels == {"where": "train[0].label"}
    assert actual.contents.entity_types == {"city": "train[1].entities[0].type"}
    assert actual.contents.display_name == "tickets of May"


REFUSED: list[tuple[list[Any], type[Exception], str]] = [
    ([ExampleBatch("train", [GOOD, BAD])], ExampleError, "train:2: entities[0].end"),
    (
        [ExampleBatch("train", [GOOD]), ExampleBatch("dev", [GOOD]), ExampleBatch("dev", [Example(text=" ")])],
        ExampleError,
        "dev:2: text",
    ),
    ([ExampleBatch("train", [GOOD]), Header("late")], InvalidRequestError, "header"),
    ([Header("x" * 201)], InvalidRequestError, "header.display_name"),
    ([Header("a"), Header("b"), ExampleBatch("train", [GOOD])], InvalidRequestError, "header"),
    ([], InvalidRequestError, "train"),
    ([ExampleBatch("dev", [GOOD])], InvalidRequestError, "train"),
    ([ExampleBatch("train", [GOOD] * 4), ExampleBatch("dev", [GOOD])], InvalidRequestError, "4 examples"),
    (
        [ExampleBatch("train", [Example(text="a", label="x" * (MAX_NAME_LENGTH + 1))])],
        InvalidRequestError,
        "train[0].label",
    ),
    (
        [ExampleBatch("train", [Example(text="a", entities=(Span(start=0, end=1, type="x" * 101),))])],
        InvalidRequestError,
        "the maximum is 100",
    ),
    ([ExampleBatch("train", [Example(text="a" * 20_001)])], ExampleError, "at most 20000"),
    ([ExampleBatch("train", [GOOD]), ConnectionError("gone")], ConnectionError, "gone"),
    ([ExampleBatch("train", [GOOD]), asyncio.CancelledError()], asyncio.CancelledError, ""),
]


@pytest.mark.parametrize(("messages", "error", "names"), REFUSED)
async def test_nothing_is_kept_of_a_bad_upload(
    harness: Harness, messages: list[Any], error: type[BaseException], names: str
) -> None:
    """An invalid line, a wrong order, too much data or a disconnected caller gives an error that names it, and leaves no files."""
    harness.set(max_dataset_examples=4)

    with pytest.raises(error) as caught:
        await upload(harness, *messages)

    assert names in str(caught.value)
    assert left_behind(harness) == []


@pytest.mark.parametrize("kind", ["label", "entity type"])
async def test_a_data_set_has_no_more_names_than_it_may(kind: str, harness: Harness) -> None:
    """The first name above the limit is rejected with its location and the limit; repeated names are not."""
    names = [str(number) for number in range(MAX_NAMES)]

    def example(name: str) -> Example:
        return (
            Example(text="a", label=name)
            if kind == "label"
            else Example(text="a", entities=(Span(start=0, end=1, type=name),))
        )

    await upload(harness, ExampleBatch("train", [example(name) for name in (*names, "0")]))
    field = "label" if kind == "label" else r"entities\[0\]\.type"
    with pytest.raises(
        InvalidRequestError, match=rf"train\[{MAX_NAMES}\]\.{field}: exceeds the limit of {MAX_NAMES} names"
    ):
        await upload(harness, ExampleBatch("train", [example(name) for name in (*names, "new")]))


@pytest.mark.parametrize(
    "upload_id", ["", ".", "..", "../checkpoints/first", "upload-1/../x", "/etc", "upload-", "upload-no", "upload-\n"]
)
async def test_an_upload_id_cannot_escape_its_root(harness: Harness, upload_id: str) -> None:
    """An invalid upload id is not found, wherever it would lead."""
    await upload(harness, ExampleBatch("train", [GOOD]))

    with pytest.raises(UnknownNameError, match="there is no upload"):
        harness.uploads.open(upload_id)


async def test_a_full_disk_ends_the_upload(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the upload ends with an error and a retry delay."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("twofold_server.adaptation.dataset_writer.flush", full)

    with pytest.raises(OverloadedError, match="No space left"):
        await upload(harness, ExampleBatch("train", [GOOD]))

    assert left_behind(harness) == []


async def test_a_job_trains_on_an_upload(harness: Harness, tmp_path: Path) -> None:
    """The trainer gets the upload's files, and validation uses the counts of the upload."""
    sent = await upload(harness, ExampleBatch("train", [GOOD]), ExampleBatch("dev", [GOOD]))
    harness.play(("environment", str(tmp_path / "seen")), finish())

    async with harness.running() as runner:
        view = await runner.submit(job_spec(head="classifier", upload_id=sent.id))
        assert (await over(runner, view.id)).state is JobState.SUCCEEDED
        with pytest.raises(InvalidRequestError, match="no training example has entities"):
            await runner.submit(job_spec(head="ner", upload_id=sent.id))
        with pytest.raises(UnknownNameError):
            await runner.submit(job_spec(head="ner", upload_id="../x"))
    seen = (tmp_path / "seen").read_text(encoding="utf-8")
    assert str(sent.path.resolve() / "train.jsonl") in seen
    assert str(sent.path.resolve() / "dev.jsonl") in seen


def contents_of(tmp_path: Path, *examples: Example) -> Contents:
    """Return the contents of examples."""
    with DatasetWriter(tmp_path, 9) as writer:
        writer.add("train", examples)
        return writer.finish()


BASE = LabelSet(labels=("where",), entity_types=("city",))
NEW_LABEL = Example(text="a b", label="refund", entities=())
NEW_TYPE = Example(text="a b", label="where", entities=(Span(start=0, end=1, type="day"),))
ADMITTED: list[tuple[dict[str, Any], Example, list[tuple[str, str]]]] = [
    ({"head": "classifier"}, NEW_LABEL, []),
    ({"head": "ner"}, NEW_LABEL, []),
    ({"head": "ner"}, GOOD, [("dataset.inline.train", "no training example has entities")]),
    ({"head": "classifier"}, SPAN, [("dataset.inline.train", "no training example has label")]),
    ({"head": "classifier", "label_policy": "fixed"}, GOOD, []),
    ({"head": "classifier", "label_policy": "fixed"}, NEW_LABEL, [("dataset.inline.train[0].label", "'refund'")]),
    ({"head": "classifier", "label_policy": "fixed"}, NEW_TYPE, []),
    ({"head": "ner", "label_policy": "fixed"}, NEW_TYPE, [("dataset.inline.train[0].entities[0].type", "'day'")]),
    ({"head": "ner", "annotated_types": ("day", "city")}, NEW_TYPE, []),
    ({"head": "ner", "annotated_types": ("city",)}, NEW_TYPE, [("dataset.inline.train[0].entities[0].type", "'day'")]),
    (
        {"head": "ner", "annotated_types": ("city",), "upload_id": "upload-1"},
        NEW_TYPE,
        [("dataset.upload_id", "train[0].entities[0].type: 'day'")],
    ),
]


@pytest.mark.parametrize(("settings", "example", "expected"), ADMITTED)
def test_a_job_must_fit_its_data_and_its_base(
    tmp_path: Path, settings: dict[str, Any], example: Example, expected: list[tuple[str, str]]
) -> None:
    """A data set must contain annotations of the adapted head and only allowed names; an error names the example."""
    actual = list(validate_request(job_spec(**settings), contents_of(tmp_path, example), BASE))

    assert [result.field for result in actual] == [field for field, _ in expected]
    assert all(words in result.description for result, (_, words) in zip(actual, expected, strict=True))
