"""How jobs look on a terminal and in a log."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twofold._types.job_events import GuardCheck, JobEvent, PhaseEnded, Published, ScoreMeasured, StepProgress
from twofold._types.job_report import JobReport, ScoreChange, Verdict
from twofold._types.jobs import Job, JobState, PhaseTiming
from twofold.cli._job_progress import SCORE_TITLES, JobProgress
from twofold.cli._output import make_table

_COLOURS: Mapping[str, str] = {
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "magenta",
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
}


def render_progress(progress: JobProgress, now: datetime | None = None) -> RenderableType:
    """Return a running job: its phases, the training step, the scores so far and the last message."""
    now = now or datetime.now(UTC)
    parts: list[RenderableType] = [_headline(progress.job)]
    phases = make_table("", "", "", show_header=False)
    for name, seconds in progress.completed_phases:
        phases.add_row(Text("✓", "green"), name, Text(f"{seconds:.1f} s", "dim"))
    if progress.phase_started_at and not progress.job.is_over:
        elapsed = max(0.0, (now - progress.phase_started_at).total_seconds())
        phases.add_row(Text("●", "cyan"), Text(progress.phase, "bold"), f"{elapsed:.0f} s")
    parts.append(_indent(phases))
    if progress.step and progress.phase == "train" and not progress.job.is_over:
        parts.append(_indent(_step_bar(progress.step)))
    if _has_scores(progress.report):
        parts.append(_indent(_score_table(progress.report), top=1))
    if progress.message:
        parts.append(_indent(Text(progress.message, style="dim"), top=1))
    return Group(*parts)


def render_job(job: Job) -> RenderableType:
    """Return a job: its state, the reason, the scores and the other results."""
    parts: list[RenderableType] = [_headline(job)]
    if job.reason:
        parts.append(_indent(Text(job.reason)))
    if job.phases:
        parts.append(_indent(Text("  ".join(map(_format_timing, job.phases)), style="dim")))
    if _has_scores(job.report):
        parts.append(_indent(_score_table(job.report), top=1, bottom=1))
    results = make_table("", "", show_header=False)
    for name, value in _results(job):
        results.add_row(Text(name, "dim"), value)
    parts.append(_indent(results))
    return Group(*parts)


def format_event(event: JobEvent, before: JobProgress) -> str:
    """Return *event* as a line of a log, or an empty string if it adds too little to the lines *before*."""
    message = event.message
    match event.payload:
        case JobState() as state:
            message = f"{state}: {message}" if message else str(state)
        case StepProgress() as step:
            # One line for every 5 % of the steps.
            if before.step and _twentieths(before.step) == _twentieths(step):
                return ""
            message = f"{step.stage} {step.step}/{step.total_steps}  loss {step.loss:.4f}  {_remaining_time(step)}"
        case ScoreMeasured() as score:
            value = f"{100 * score.value:.1f} ({score.examples} examples)"
            message = f"{score.figure} {score.metric} {score.moment}: {value}"
        case GuardCheck() as look if look.action == "none":
            return ""
        case PhaseEnded(seconds=seconds):
            message = f"done in {seconds:.1f} s" + (f": {message}" if message else "")
        case Verdict() as verdict:
            message = f"verdict {verdict}" + (f": {message}" if message else "")
        case Published(checkpoint_id=checkpoint_id):
            message = f"published {checkpoint_id}"
    time = f"{event.time.astimezone():%H:%M:%S}  " if event.time else ""
    return f"{time}{event.phase or 'job':<9} {'! ' if event.warning else ''}{message}"


def _indent(part: RenderableType, *, top: int = 0, bottom: int = 0) -> Padding:
    return Padding(part, (top, 2, bottom, 2), expand=False)


def _headline(job: Job) -> Text:
    description = f"{job.head} head, freeze {job.freeze}" if job.head else ""
    headline = Text(job.id, style="bold").append(f"  {description}  ", style="not bold dim")
    return headline.append(job.state.upper(), style=f"bold {_COLOURS.get(job.state, 'cyan')}")


def _step_bar(step: StepProgress) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_row(
        step.stage,
        ProgressBar(total=max(1, step.total_steps), completed=step.step, width=30),
        f"{step.step}/{step.total_steps}",
        f"loss {step.loss:.4f}",
        _remaining_time(step),
    )
    return row


def _has_scores(report: JobReport) -> bool:
    return any(getattr(report, name) for name in SCORE_TITLES)


def _score_table(report: JobReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for column in ("", "metric"):
        table.add_column(column)
    for column in ("before", "after", "change", "examples"):
        table.add_column(column, justify="right")
    for name, title in SCORE_TITLES.items():
        comparison: ScoreChange | None = getattr(report, name)
        if comparison:
            before, after = _percent(comparison.before), _percent(comparison.after)
            examples = f"{comparison.examples or ''}"
            table.add_row(title, comparison.metric, before, after, _format_change(comparison), examples)
    return table


def _results(job: Job) -> Iterator[tuple[str, str | Text]]:
    report = job.report
    if report.verdict:
        yield "verdict", Text(report.verdict.upper(), f"bold {_COLOURS[report.verdict]}")
    if job.candidate_checkpoint_id:
        swap = f", swapped in after {report.swap_seconds:.2f} s" if report.swap_seconds else ""
        yield "checkpoint", job.candidate_checkpoint_id + swap
    if shadow := report.shadow:
        agreements = (("classifier", shadow.classifier), ("ner", shadow.ner))
        agreed = "".join(
            f", {head} agrees on {agreement.agreed} of {agreement.texts}" for head, agreement in agreements if agreement
        )
        yield "shadow", f"{shadow.texts} live texts compared{agreed}"
    if report.rollback_reason:
        yield "rolled back", Text(report.rollback_reason, "bold red")
    if frozen := report.frozen:
        unchanged = frozen.digest_before == frozen.digest_after
        yield "frozen", f"{frozen.parameters} tensors, {'unchanged' if unchanged else 'CHANGED'}"
    if dataset := report.dataset:
        counts = f"{dataset.train_examples} for training, {dataset.dev_examples} for early stopping"
        yield "examples", f"{counts}, {dataset.gate_examples} for the gate"
    if report.added_labels:
        yield "added labels", ", ".join(report.added_labels)
    if report.plan:
        yield "plan", report.plan
    for note in report.notes:
        yield "note", note


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _format_change(comparison: ScoreChange) -> Text:
    if comparison.before is None or comparison.after is None:
        return Text()
    change = round(100 * (comparison.after - comparison.before), 1)
    return Text(f"{change:+.1f}", "green" if change > 0 else "red" if change < 0 else "dim")


def _format_timing(timing: PhaseTiming) -> str:
    if not (timing.start_time and timing.end_time):
        return timing.phase
    return f"{timing.phase} {(timing.end_time - timing.start_time).total_seconds():.1f} s"


def _twentieths(step: StepProgress) -> int:
    return step.step * 20 // max(1, step.total_steps)


def _remaining_time(step: StepProgress) -> str:
    minutes, seconds = divmod(round(step.remaining_seconds), 60)
    return f"{minutes}:{seconds:02d} left"
