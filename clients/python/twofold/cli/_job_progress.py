"""A job on a terminal: what its events add up to, and how that looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from twofold._types.job_events import (
    GuardLook,
    JobEvent,
    PhaseEnded,
    Published,
    ScoreMeasured,
    StepProgress,
)
from twofold._types.jobs import (
    Comparison,
    Job,
    JobReport,
    JobState,
    PhaseTiming,
    Verdict,
)
from twofold.cli._session import table

_COLOURS: Mapping[str, str] = {
    JobState.SUCCEEDED: "green",
    JobState.REJECTED: "yellow",
    JobState.FAILED: "red",
    JobState.CANCELLED: "magenta",
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
}
_FIGURES = {"protected": "protected task", "retained": "retained labels", "new": "new data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A job as its events have left it."""

    job: Job
    phase: str = ""
    phase_began: datetime | None = None
    ended: tuple[tuple[str, float], ...] = ()
    progress: StepProgress | None = None
    report: JobReport = field(default_factory=JobReport)
    message: str = ""

    def after(self, event: JobEvent) -> "Board":
        """Return the board with *event* on it."""
        board = replace(self, message=event.message or self.message)
        if event.phase and event.phase != self.phase:
            began = event.time or datetime.now(UTC)
            board = replace(self, message=event.message, phase=event.phase, phase_began=began)
        match event.payload:
            case JobState() as state:
                return replace(board, job=replace(board.job, state=state))
            case StepProgress() as progress:
                return replace(board, progress=progress)
            case PhaseEnded(seconds=seconds):
                return replace(board, ended=(*board.ended, (event.phase, seconds)), phase_began=None)
            case Verdict() as verdict:
                return replace(board, report=replace(board.report, verdict=verdict))
            case ScoreMeasured() as score if score.figure in _FIGURES and score.moment in {"before", "after"}:
                return replace(board, report=_with_score(board.report, score))
        return board


def board_view(board: Board, now: datetime | None = None) -> RenderableType:
    """Return the board as it looks at the time *now*."""
    now = now or datetime.now(UTC)
    parts: list[RenderableType] = [_headline(board.job)]
    phases = table("", "", "")
    phases.show_header = False
    for name, seconds in board.ended:
        phases.add_row(Text("✓", "green"), name, Text(f"{seconds:.1f} s", "dim"))
    if board.phase_began and not board.job.is_over:
        elapsed = max(0.0, (now - board.phase_began).total_seconds())
        phases.add_row(Text("●", "cyan"), Text(board.phase, "bold"), f"{elapsed:.0f} s")
    parts.append(Padding(phases, (0, 2), expand=False))
    if board.progress and board.phase == "train" and not board.job.is_over:
        parts.append(Padding(_bar(board.progress), (0, 2), expand=False))
    if any((board.report.protected, board.report.retained, board.report.new)):
        parts.append(Padding(_scores(board.report), (1, 2, 0, 2), expand=False))
    if board.message:
        parts.append(Padding(Text(board.message, style="dim"), (1, 2, 0, 2), expand=False))
    return Group(*parts)


def job_view(job: Job) -> RenderableType:
    """Return what a person wants to know of a job: how it ended, why, and the figures."""
    parts: list[RenderableType] = [_headline(job)]
    if job.reason:
        parts.append(Padding(Text(job.reason), (0, 2), expand=False))
    if job.phases:
        parts.append(Padding(Text("  ".join(map(_timed, job.phases)), style="dim"), (0, 2), expand=False))
    report = job.report
    if any((report.protected, report.retained, report.new)):
        parts.append(Padding(_scores(report), (1, 2), expand=False))
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(job):
        facts.add_row(Text(name, "dim"), value)
    parts.append(Padding(facts, (0, 2), expand=False))
    return Group(*parts)


def event_line(event: JobEvent, before: Board) -> str:
    """Return *event* as a line of a log, or nothing if the lines so far say enough."""
    said = event.message
    match event.payload:
        case JobState() as state:
            said = f"{state}: {said}" if said else str(state)
        case StepProgress() as step:
            if before.progress and _twentieth(before.progress) == _twentieth(step):
                return ""
            said = f"{step.stage} {step.step}/{step.total_steps}  loss {step.loss:.4f}  {_left(step)}"
        case ScoreMeasured() as s:
            said = f"{s.figure} {s.metric} {s.moment}: {100 * s.value:.1f} ({s.examples} examples)"
        case GuardLook() as look if look.action == "none":
            return ""
        case PhaseEnded(seconds=seconds):
            said = f"done in {seconds:.1f} s" + (f": {said}" if said else "")
        case Verdict() as verdict:
            said = f"verdict {verdict}" + (f": {said}" if said else "")
        case Published(checkpoint_id=checkpoint_id):
            said = f"published {checkpoint_id}"
    stamp = f"{event.time.astimezone():%H:%M:%S}  " if event.time else ""
    return f"{stamp}{event.phase or 'job':<9} {'! ' if event.warning else ''}{said}"


def _headline(job: Job) -> Text:
    what = f"{job.head} head, freeze {job.freeze}" if job.head else ""
    shown = Text(job.id, style="bold").append(f"  {what}  ", style="not bold dim")
    return shown.append(job.state.upper(), style=f"bold {_COLOURS.get(job.state, 'cyan')}")


def _bar(progress: StepProgress) -> Table:
    row = Table.grid(padding=(0, 2))
    row.add_row(
        progress.stage,
        ProgressBar(total=max(1, progress.total_steps), completed=progress.step, width=30),
        f"{progress.step}/{progress.total_steps}",
        f"loss {progress.loss:.4f}",
        _left(progress),
    )
    return row


def _scores(report: JobReport) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for column in ("", "metric"):
        shown.add_column(column)
    for column in ("before", "after", "change", "examples"):
        shown.add_column(column, justify="right")
    for name, called in _FIGURES.items():
        if one := getattr(report, name):
            shown.add_row(
                called, one.metric, _points(one.before), _points(one.after), _change(one), f"{one.examples or ''}"
            )
    return shown


def _facts(job: Job) -> list[tuple[str, str | Text]]:
    report = job.report
    facts: list[tuple[str, str | Text]] = []
    if report.verdict:
        facts.append(("verdict", Text(report.verdict.upper(), f"bold {_COLOURS[report.verdict]}")))
    if job.candidate_checkpoint_id:
        swap = f", swapped in after {report.swap_seconds:.2f} s" if report.swap_seconds else ""
        facts.append(("checkpoint", job.candidate_checkpoint_id + swap))
    if shadow := report.shadow:
        heads = [(name, one) for name in ("classifier", "ner") if (one := getattr(shadow, name))]
        agreed = "".join(f", {name} agrees on {one.agreed} of {one.texts}" for name, one in heads)
        facts.append(("shadow", f"{shadow.texts} live texts compared{agreed}"))
    if report.rolled_back:
        facts.append(("rolled back", Text(report.rolled_back, "bold red")))
    if proof := report.frozen:
        same = proof.digest_before == proof.digest_after
        facts.append(("frozen", f"{proof.parameters} tensors, {'unchanged' if same else 'CHANGED'}"))
    if d := report.dataset:
        facts.append(
            ("data", f"{d.train_examples} to train, {d.dev_examples} to stop by, {d.gate_examples} to judge by")
        )
    if report.added_labels:
        facts.append(("added", ", ".join(report.added_labels)))
    if report.plan:
        facts.append(("plan", report.plan))
    return [*facts, *(("note", note) for note in report.notes)]


def _with_score(report: JobReport, score: ScoreMeasured) -> JobReport:
    old: Comparison = getattr(report, score.figure) or Comparison()
    new = replace(old, metric=score.metric, examples=score.examples)
    new = replace(new, before=score.value) if score.moment == "before" else replace(new, after=score.value)
    match score.figure:
        case "protected":
            return replace(report, protected=new)
        case "retained":
            return replace(report, retained=new)
    return replace(report, new=new)


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _change(one: Comparison) -> Text:
    if one.before is None or one.after is None:
        return Text()
    change = round(100 * (one.after - one.before), 1)
    return Text(f"{change:+.1f}", "green" if change > 0 else "red" if change < 0 else "dim")


def _timed(phase: PhaseTiming) -> str:
    if not (phase.start_time and phase.end_time):
        return phase.phase
    return f"{phase.phase} {(phase.end_time - phase.start_time).total_seconds():.1f} s"


def _twentieth(progress: StepProgress) -> int:
    return progress.step * 20 // max(1, progress.total_steps)


def _left(progress: StepProgress) -> str:
    minutes, seconds = divmod(round(progress.remaining_seconds), 60)
    return f"{minutes}:{seconds:02d} left"
