"""The report of a finished job, over the wire and on disk."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from server.api.servicers.test_adaptation import client_of
from support.sample_report import DOCUMENT, FIXED, FLIP
from support.scripted_trainer import HANG, INLINE, SPEC, TRAIN, Harness, finish, over, publish, runs, say, until
from twofold import AsyncClient, FailedPreconditionError, InvalidArgumentError, NotFoundError
from twofold.v1 import adaptation_pb2 as pb
from twofold_checkpoint.protocol.events import DatasetDescribed, GateEvaluated, NoteAdded, PlanMade
from twofold_checkpoint.protocol.findings import FINDINGS, Findings, write_findings
from twofold_checkpoint.protocol.job import Hyperparameters
from twofold_server.report.document import Document

FOUND = Findings(
    texts=True,
    figures=DOCUMENT.figures,
    names=DOCUMENT.names,
    confusions=DOCUMENT.confusions,
    changes=(FLIP, FIXED),
    lengths=((8, 3),),
    approved=None,
)
LEAVE = ("findings", msgspec.json.encode(FOUND).decode())
DESCRIBE = [
    say(
        DatasetDescribed(
            train_examples=2,
            dev_examples=0,
            gate_examples=0,
            label_counts={"where": 1, "refund": 1},
            unaligned_annotations=0,
            mean_tokens=4.0,
        )
    ),
    say(PlanMade(plan="Train it.", hyperparameters=Hyperparameters(epochs=3), added_labels=("where",))),
    say(NoteAdded(message="Look at this.", warning=True)),
]


def stored_report(harness: Harness, job_id: str) -> tuple[Document, str]:
    """Read a job's report from its directory."""
    directory = harness.store.root / "jobs" / job_id
    document = msgspec.json.decode((directory / "report.json").read_bytes(), type=Document)
    return document, (directory / "report.html").read_text(encoding="utf-8")


ENDINGS: dict[str, tuple[list[tuple[str, Any]], str, str]] = {
    "promoted": ([*DESCRIBE, LEAVE, *publish()], "succeeded", "PASS"),
    "refused": (
        [
            *DESCRIBE,
            LEAVE,
            TRAIN,
            say(GateEvaluated(verdict="fail", reason="Worse.")),
            finish("rejected", "Worse by far."),
        ],
        "rejected",
        "REJECTED",
    ),
    "undecided": (
        [
            LEAVE,
            TRAIN,
            say(GateEvaluated(verdict="inconclusive", reason="Few.")),
            finish("rejected", "Too few examples."),
        ],
        "rejected",
        "INCONCLUSIVE",
    ),
    "failed": ([*DESCRIBE, finish("failed", "There is no memory.")], "failed", "FAILED"),
    "crashed": ([TRAIN, ("stderr", "boom"), ("exit", 3)], "failed", "FAILED"),
    "damaged": ([("findings", '{"texts": 7'), TRAIN, finish()], "succeeded", "MEASURED"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_finished_job_has_a_report(harness: Harness, ending: str) -> None:
    """Every finished job has both forms of its report, with the trainer's findings if they can be read."""
    actions, state, word = ENDINGS[ending]
    harness.play(*actions)
    view = await harness.run()
    document, page = stored_report(harness, view.id)

    assert (document.state, document.reason) == (state, view.reason)
    assert word in page
    assert view.reason.replace("'", "&#x27;") in page
    has_findings = LEAVE in actions
    assert document.figures == (FOUND.figures if has_findings else ())
    assert document.changes == (FOUND.changes if has_findings else ())
    assert document.plan == ("Train it." if DESCRIBE[1] in actions else "")
    assert [note.message for note in document.notes] == (["Look at this."] if DESCRIBE[2] in actions else [])
    assert [ancestor.role for ancestor in document.lineage] == (
        ["candidate", "base"] if ending == "promoted" else ["base"]
    )
    if ending == "promoted":
        assert document.lineage[0].aliases == ("current",)
        assert (document.candidate, document.swap_seconds) == ("second", 0.25)


async def test_a_report_over_the_wire(harness: Harness) -> None:
    """GetReport returns the stored bytes as HTML or JSON, and rebuilds files that are missing."""
    async with client_of(harness) as (client, runner):
        harness.play(LEAVE, *publish())
        view = await over(runner, (await runner.submit(SPEC, INLINE)).id)
        page = await client.report(view.id)
        document = json.loads(await client.report(view.id, format="json"))
        directory = harness.store.root / "jobs" / view.id

        assert page == (directory / "report.html").read_text(encoding="utf-8")
        assert document == json.loads((directory / "report.json").read_bytes())
        assert document["job_id"] == view.id
        assert document["changes"][0]["text"] == FLIP.text

        for name in ("report.html", "report.json"):  # The server rebuilds it.
            (directory / name).unlink()
        assert await client.report(view.id) == page
        assert sorted(path.name for path in directory.iterdir() if "report" in path.name) == [
            "report.html",
            "report.json",
        ]


async def test_jobs_without_a_report(harness: Harness) -> None:
    """An unknown job is NOT_FOUND, an unfinished job has no report yet, and an unknown format is named in the error."""
    async with client_of(harness) as (client, runner):
        with pytest.raises(NotFoundError):
            await client.report("nobody")
        harness.play(TRAIN, HANG)
        view = await runner.submit(SPEC, INLINE)
        await until(runner, view.id, runs)
        with pytest.raises(FailedPreconditionError, match="has no report yet; wait until WatchJob shows that it ended"):
            await client.report(view.id)

        waiting = await runner.submit(SPEC, INLINE)
        await client.cancel(waiting.id)
        assert "CANCELLED" in await client.report(waiting.id)
        await client.cancel(view.id)
        assert "CancelJob was called while the job ran." in await client.report(view.id)
        request = pb.GetReportRequest(job_id=view.id, format=9)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match="format: unknown format 9; use REPORT_FORMAT_HTML"):
            await client._transport.run(_raw(client, request))


def _raw(client: AsyncClient, request: pb.GetReportRequest) -> Any:
    from twofold import _rpcs

    return client._context.call(_rpcs.GET_REPORT, request, None)


async def test_a_report_that_cannot_be_written_fails_no_job(harness: Harness) -> None:
    """If a report cannot be written, the job's state is unaffected and the queue goes on."""
    harness.play(TRAIN, finish())
    async with harness.running() as runner:
        first = await runner.submit(SPEC, INLINE)
        # A directory blocks the report's path.
        target = harness.store.root / "jobs" / first.id / "report.html"
        target.mkdir(parents=True)
        assert (await over(runner, first.id)).state == "succeeded"
        second = await runner.submit(SPEC, INLINE)
        assert (await over(runner, second.id)).state == "succeeded"


def test_findings_are_whole_or_not_there(harness: Harness) -> None:
    """Writing findings twice leaves one file and no temporary files."""
    directory = harness.store.root / "jobs" / "some"
    write_findings(directory, FOUND)
    write_findings(directory, msgspec.structs.replace(FOUND, texts=False))

    assert [path.name for path in directory.iterdir()] == [FINDINGS]
