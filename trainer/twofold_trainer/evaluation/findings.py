"""Collect and write the trainer's findings, which the job's report shows in addition to the events."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import msgspec
from twofold_checkpoint.decoding import Prediction
from twofold_checkpoint.protocol.events import Event, Figure, Moment, NoteAdded
from twofold_checkpoint.protocol.findings import (
    Change,
    Confusion,
    FigureName,
    Findings,
    Interval,
    Measurement,
    NameCount,
    write_findings,
)
from twofold_checkpoint.protocol.job import TrainerJob

from twofold_trainer.evaluation.confusions import count_names, list_confusions, pairs_of
from twofold_trainer.evaluation.evaluator import JobEvaluator, Scores
from twofold_trainer.evaluation.flips import list_changes
from twofold_trainer.evaluation.gate import Pair, compare
from twofold_trainer.planning.plan import Plan
from twofold_trainer.scoring.confidence_intervals import interval

log = logging.getLogger(__name__)

LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 1 << 20)
"""Upper ends of the ranges of the token histogram."""


def may_store_text(plan: Plan) -> bool:
    """Return whether the findings may contain texts: only if the candidate's memory stores examples."""
    return plan.remembers == "examples"


def leave_findings(
    plan: Plan, figures: JobEvaluator, before: Scores, after: Scores | None = None, *, approved: bool = False
) -> Iterator[Event]:
    """Write the findings to the job's directory. On an error the job continues with a warning."""
    try:
        write_findings(directory_of(plan.job), find(plan, figures, before, after, approved=approved))
    except Exception as error:
        log.exception("findings not written")
        why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}. This is a bug"
        yield NoteAdded(message=f"The report lacks the trainer's findings: {why}.", warning=True)


def directory_of(job: TrainerJob) -> Path:
    """Return the job's directory in its store."""
    return Path(job.store) / "jobs" / job.id


def redact(plan: Plan, events: Iterator[Event]) -> Iterator[Event]:
    """Yield a plan's events, without quoted texts if no text may be stored."""
    for event in events:
        if isinstance(event, NoteAdded) and event.warning and plan.unaligned[0] and not may_store_text(plan):
            yield NoteAdded(
                message=f"{plan.unaligned[0]} annotations begin or end inside a word and were excluded from the loss.",
                warning=True,
            )
        else:
            yield event


def find(
    plan: Plan, figures: JobEvaluator, before: Scores, after: Scores | None, *, approved: bool = False
) -> Findings:
    """Collect the findings from the scored answers to the held-out examples."""
    measurements: list[Measurement] = []
    names: list[NameCount] = []
    confusions: list[Confusion] = []
    changes: list[Change] = []
    for figure in get_args(FigureName):
        pair = Pair(before[figure], None if after is None else after[figure])
        if pair.before is None:
            continue
        scorer, answers = figures.scorers[figure], _answers(figures, figure, trained=pair.after is not None)
        measurements.append(_measure(figure, pair, seed=plan.request.seed))
        counted = [pairs_of(scorer.head, scorer.examples, predictions) for predictions in answers]
        first, last = counted[0], counted[1] if len(counted) > 1 else None
        names += count_names(figure, first, last)
        confusions += list_confusions(figure, first, last)
        if pair.after is not None and may_store_text(plan):
            changes += list_changes(figure, scorer.head, pair, tuple(scorer.examples), (answers[0], answers[1]))
    checkpoint = plan.approved_checkpoint() if approved else None
    return Findings(
        texts=may_store_text(plan),
        figures=tuple(measurements),
        names=tuple(names),
        confusions=tuple(confusions),
        changes=tuple(changes),
        lengths=count_lengths([len(target.encoding.ids) for target in plan.new]),
        branch=plan.model.division,
        approved=None if checkpoint is None else checkpoint.id,
    )


def _answers(figures: JobEvaluator, figure: Figure, *, trained: bool) -> list[tuple[Prediction, ...]]:
    moments: tuple[Moment, ...] = ("before", "after") if trained else ("before",)
    return [figures.answers[moment][figure] for moment in moments]


def _measure(figure: FigureName, pair: Pair, *, seed: int) -> Measurement:
    before, after = pair.before, pair.after
    assert before is not None, "The score was not measured. This is a bug."
    plain = Measurement(
        figure=figure,
        head=before.head,
        metric=before.metric,
        examples=before.examples,
        before=interval(before, seed=seed),
        calibration_before=before.calibration_error,
    )
    if after is None:
        return plain
    compared = compare(pair, "base", margin=0.0, seed=seed)
    return msgspec.structs.replace(
        plain,
        after=interval(after, seed=seed),
        difference=Interval(value=compared.bounds.difference, low=compared.bounds.lower, high=compared.bounds.upper),
        gained=compared.gained,
        lost=compared.lost,
        calibration_after=after.calibration_error,
    )


def count_lengths(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Count texts per range of lengths, up to the range of the longest text."""
    counts = [0] * len(LENGTHS)
    for length in lengths:
        counts[bisect.bisect_left(LENGTHS, min(length, LENGTHS[-1]))] += 1
    used = max((index for index, count in enumerate(counts) if count), default=-1)
    return tuple(zip(LENGTHS[: used + 1], counts[: used + 1], strict=True))
