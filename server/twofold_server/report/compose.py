"""Compose the document of a job's report, as a pure function of the job's data."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import asdict
from twofold_checkpoint.protocol.events import NoteAdded
from twofold_checkpoint.protocol.findings import Findings

from twofold_server.jobs.model import EventRecord, Job, Phase
from twofold_server.report.curves import collect_curves
from twofold_server.report.document import Ancestor, DatasetFacts, Document, Note, PhaseSeconds, Proofs
from twofold_server.versions.events import RolledBack, Shadowed

MAX_NOTES = 100
MAX_NOTE_CHARACTERS = 2000
MAX_LABELS = 300
"""Maximum number of labels and types with a count, the most frequent first."""


def compose(
    job: Job, records: Sequence[EventRecord], findings: Findings | None, lineage: tuple[Ancestor, ...]
) -> Document:
    """Combine a job, its events, its trainer's findings and its checkpoint lineage into one document."""
    findings = findings or Findings(texts=False)
    facts = job.report
    return Document(
        job_id=job.id,
        state=job.state,
        verdict=facts.verdict,
        reason=job.reason,
        created=job.created,
        started=job.started,
        ended=job.ended,
        request=job.spec.request,
        promote=job.spec.promote,
        texts=findings.texts,
        figures=findings.figures,
        gate=facts.gate,
        stages=collect_curves(records),
        names=findings.names,
        confusions=findings.confusions,
        changes=findings.changes,
        dataset=_dataset(job, findings),
        notes=_notes(records),
        plan=facts.plan,
        hyperparameters=job.hyperparameters,
        added_labels=facts.added_labels,
        proofs=_proofs(job),
        branch=findings.branch,
        phases=tuple(PhaseSeconds(name=phase.name, seconds=_seconds(phase)) for phase in job.phases),
        swap_seconds=facts.swap_seconds,
        base=job.base,
        candidate=job.candidate,
        lineage=lineage,
    )


def _dataset(job: Job, findings: Findings) -> DatasetFacts | None:
    facts = job.report.dataset
    if facts is None:
        return None
    commonest = sorted(facts.label_counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_LABELS]
    return DatasetFacts(**{**asdict(facts), "label_counts": dict(commonest), "lengths": findings.lengths})


def _notes(records: Sequence[EventRecord]) -> tuple[Note, ...]:
    """Return at most MAX_NOTES notes; if there are more, warnings come first."""
    notes = [
        Note(phase=record.phase, message=record.event.message[:MAX_NOTE_CHARACTERS], warning=record.event.warning)
        for record in records
        if isinstance(record.event, NoteAdded)
    ]
    shadowed = [
        Note(phase=record.phase, message=record.event.summary)
        for record in records
        if isinstance(record.event, Shadowed)
    ]
    notes += shadowed[-1:]  # Earlier ones are interim results.
    notes += [
        Note(phase=record.phase, message=record.event.summary, warning=True)
        for record in records
        if isinstance(record.event, RolledBack)
    ]
    if len(notes) > MAX_NOTES:
        notes.sort(key=lambda note: not note.warning)
    return tuple(notes[:MAX_NOTES])


def _proofs(job: Job) -> Proofs:
    frozen, exact = job.report.frozen, job.report.exact
    return Proofs(
        frozen_tensors=None if frozen is None else frozen.parameters,
        digest_before=None if frozen is None else frozen.digest_before,
        digest_after=None if frozen is None else frozen.digest_after,
        exact_texts=None if exact is None else exact.texts,
        exact_max_error=None if exact is None else exact.max_error,
        parity_max_error=job.report.max_parity_error or None,
    )


def _seconds(phase: Phase) -> float:
    return 0.0 if phase.ended is None else (phase.ended - phase.started).total_seconds()
