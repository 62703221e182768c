"""Messages of jobs and their events, each event with a readable sentence."""

from __future__ import annotations

import datetime as dt
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from twofold.v1 import adaptation_pb2 as pb
from twofold_checkpoint.protocol import events as ev

from twofold_server.api.wire.adaptation import FREEZES, PROMOTES
from twofold_server.api.wire.checkpoints import write_time
from twofold_server.api.wire.inference import HEAD_NUMBERS
from twofold_server.errors import InvalidRequestError, Violation
from twofold_server.jobs import model
from twofold_server.jobs.model import EventRecord, Job, JobState, Report
from twofold_server.report.reporter import ReportFormat
from twofold_server.versions.events import RolledBack, Shadowed

STATES = {state: pb.JobState.Value(f"JOB_STATE_{state.name}") for state in JobState}
VERDICTS: dict[ev.VerdictName, pb.Verdict.ValueType] = {
    "pass": pb.VERDICT_PASS,
    "fail": pb.VERDICT_FAIL,
    "inconclusive": pb.VERDICT_INCONCLUSIVE,
}
# A name may have two numbers: zero, the unspecified value, comes first, and the last one is used.
_FREEZE_NUMBERS = {name: number for number, name in FREEZES.items()}
_PROMOTE_NUMBERS = {name: number for number, name in PROMOTES.items()}
REPORT_FORMATS: dict[pb.ReportFormat.ValueType, ReportFormat] = {
    pb.REPORT_FORMAT_UNSPECIFIED: "html",
    pb.REPORT_FORMAT_HTML: "html",
    pb.REPORT_FORMAT_JSON: "json",
}
MEDIA_TYPES: dict[ReportFormat, str] = {"html": "text/html; charset=utf-8", "json": "application/json"}


def read_report_format(number: pb.ReportFormat.ValueType) -> ReportFormat:
    """Return the requested report format. Raises InvalidRequestError."""
    if number not in REPORT_FORMATS:
        raise InvalidRequestError(
            Violation("format", f"unknown format {number}; use REPORT_FORMAT_HTML or REPORT_FORMAT_JSON")
        )
    return REPORT_FORMATS[number]


def write_job(job: Job) -> pb.Job:
    """Return the message of a job. Until the trainer has resolved the settings, they are those of the request."""
    settings = job.hyperparameters or job.spec.request.hyperparameters
    return pb.Job(
        id=job.id,
        state=STATES[job.state],
        phase=job.phase,
        phases=[
            pb.PhaseTiming(phase=phase.name, start_time=_time(phase.started), end_time=_time(phase.ended))
            for phase in job.phases
        ],
        reason=job.reason,
        head=HEAD_NUMBERS[job.spec.request.head],
        freeze=_FREEZE_NUMBERS[job.spec.request.freeze],
        create_time=_time(job.created),
        start_time=_time(job.started),
        end_time=_time(job.ended),
        base_checkpoint_id=job.base,
        candidate_checkpoint_id=job.candidate,
        hyperparameters=pb.Hyperparameters(**{name: getattr(settings, name) for name in settings.__struct_fields__}),
        report=_write_report(job.report),
        queue_position=job.queue_position,
        last_sequence=job.last_sequence,
        promote=_PROMOTE_NUMBERS[job.spec.promote],
        request_id=job.spec.request_id,
    )


def _write_report(report: Report) -> pb.JobReport:
    message = pb.JobReport(
        added_labels=report.added_labels,
        notes=report.notes,
        swap_seconds=report.swap_seconds,
        plan=report.plan,
        max_parity_error=report.max_parity_error,
        gate=[_copy(comparison, pb.GateComparison) for comparison in report.gate],
        negative_flips=report.negative_flips,
        rollback_reason=report.rolled_back,
    )
    for name in ("protected", "retained", "new"):
        if change := getattr(report, name):
            comparison = pb.ScoreChange(
                metric=change.metric, before=change.before, after=change.after, examples=change.examples
            )
            getattr(message, name).CopyFrom(comparison)
    if report.verdict:
        message.verdict = VERDICTS[report.verdict]
    if report.frozen:
        message.frozen.CopyFrom(_copy(report.frozen, pb.FrozenVerification))
    if report.exact:
        message.exact.CopyFrom(_copy(report.exact, pb.ExactVerification))
    if report.dataset:
        message.dataset.CopyFrom(_copy(report.dataset, pb.DatasetStatistics))
    if shadow := report.shadow:
        message.shadow.CopyFrom(
            pb.ShadowReport(texts=shadow.texts, failed=shadow.failed, slow=shadow.slow, seconds=shadow.seconds)
        )
        for head, texts in shadow.comparable.items():
            getattr(message.shadow, head).CopyFrom(pb.ShadowAgreement(agreed=shadow.agreed[head], texts=texts))
    return message


def write_event(record: EventRecord) -> pb.JobEvent:
    """Return the message of an event."""
    event = pb.JobEvent(
        sequence=record.sequence,
        time=_time(record.time),
        phase=record.phase,
        message=describe_event(record.event, record.phase),
    )
    match record.event:
        case model.StateEntered(state=state):
            event.state = STATES[state]
        case model.PhaseEnded(seconds=seconds):
            event.phase_seconds = seconds
        case ev.StepCompleted() as step:
            event.step.CopyFrom(_copy(step, pb.StepProgress))
        case ev.ScoreMeasured() as score:
            event.score.CopyFrom(_copy(score, pb.ScoreMeasured))
        case ev.GuardChecked() as look:
            event.guard.CopyFrom(_copy(look, pb.GuardCheck))
        case ev.GateEvaluated(verdict=verdict):
            event.verdict = VERDICTS[verdict]
        case ev.Published(checkpoint_id=checkpoint_id):
            event.checkpoint_id = checkpoint_id
        case ev.NoteAdded(warning=True) | RolledBack():
            event.warning = True
    return event


def describe_event(event: model.JobEvent, phase: str) -> str:
    """Describe an event in one sentence."""
    match event:
        case (
            model.StateEntered(reason=text)
            | ev.GateEvaluated(reason=text)
            | ev.NoteAdded(message=text)
            | ev.PlanMade(plan=text)
        ):
            return text
        case model.BaseChosen():
            return f"The job starts from {event.checkpoint_id}."
        case model.PhaseEnded():
            return f"Phase {phase} took {event.seconds:.1f} s."
        case model.Swapped():
            return f"{event.checkpoint_id} is live; the swap took {event.seconds:.1f} s."
        case Shadowed() | RolledBack():
            return event.summary
        case ev.PhaseStarted():
            return f"Phase {event.phase} started."
        case ev.DatasetDescribed():
            parts = f"{event.train_examples} for training, {event.dev_examples} for early stopping, {event.gate_examples} for the gate"
            return f"The examples are split: {parts}."
        case ev.StepCompleted():
            left = f"about {event.remaining_seconds:.0f} s are left"
            return f"{event.stage}: step {event.step} of {event.total_steps}, loss {event.loss:.3f}; {left}."
        case ev.ScoreMeasured():
            value = f"{event.metric} is {100 * event.value:.1f} on {event.examples} examples"
            return f"{event.figure}, {event.moment} the training: {value}."
        case ev.GuardChecked():
            what = {"none": "no action is needed", "restore": "the best state is restored", "leave": "the stage ends"}
            fallen = 100 * (event.baseline - event.value)
            return f"The protected score is {fallen:.1f} points below its baseline on dev; {what[event.action]}."
        case ev.FrozenVerified():
            same = "are the same as before" if event.digest_before == event.digest_after else "changed"
            return f"{event.parameters} frozen tensors {same}."
        case ev.ParityMeasured():
            return f"The graph differs from the model by at most {event.max_error:.1e} on {event.texts} texts."
        case ev.ExactVerified():
            return f"The protected head answers all of {event.texts} texts as before, within {event.max_error:.1e} in a logit."
        case ev.Published():
            return f"{event.checkpoint_id} is in the store."
        case ev.Finished():
            return event.reason


def _time(moment: dt.datetime | None) -> Timestamp | None:
    return None if moment is None else write_time(moment)


def _copy(struct: Any, message: Any) -> Any:
    """Return a message with the fields that a struct has under the same names."""
    return message(**{name: getattr(struct, name) for name in struct.__struct_fields__})
