"""The learning curves of a job, from its events."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from twofold_checkpoint.protocol.events import GuardChecked, PhaseStarted, ScoreMeasured, StepCompleted

from twofold_server.jobs.model import EventRecord
from twofold_server.report.document import DevPoint, GuardPoint, LossPoint, StageCurves

Point = TypeVar("Point", LossPoint, DevPoint, GuardPoint)
MAX_POINTS = 300
"""Maximum number of points of each curve of a stage. A longer curve keeps every n-th point, counted from the last one."""


@dataclass(slots=True)
class _StageBuilder:
    name: str = ""
    loss: list[LossPoint] = field(default_factory=list)
    dev: list[DevPoint] = field(default_factory=list)
    guard: list[GuardPoint] = field(default_factory=list)


def collect_curves(records: Iterable[EventRecord]) -> tuple[StageCurves, ...]:
    """Group the events of the training by stage. A stage begins with its phase, or when steps name another stage."""
    stages: list[_StageBuilder] = []
    order = earlier_steps = step = 0
    for record in records:
        event = record.event
        if isinstance(event, PhaseStarted) and event.phase in {"probe", "train"}:
            stages.append(_StageBuilder())
        if not stages:
            continue
        stage = stages[-1]
        match event:
            case StepCompleted(stage=name):
                # Every stage begins with a measurement, so the last one belongs to it.
                if stage.name and stage.name != name:
                    stage = _StageBuilder(dev=[stage.dev.pop()] if stage.dev else [])
                    stages.append(stage)
                stage.name = name
                if event.step <= step:  # AUTO restarts the count for each stage, and so does a resumed trainer.
                    earlier_steps += step
                step = event.step
                stage.loss.append(LossPoint(step=earlier_steps + step, value=event.loss))
            case ScoreMeasured(figure="dev"):
                order += 1
                stage.dev.append(DevPoint(order=order, value=event.value))
            case GuardChecked():
                order += 1
                check = GuardPoint(
                    order=order,
                    value=event.value,
                    baseline=event.baseline,
                    allowed=event.allowed,
                    action=event.action,
                )
                stage.guard.append(check)
    return tuple(
        StageCurves(name=stage.name or "heads", loss=_thin(stage.loss), dev=_thin(stage.dev), guard=_thin(stage.guard))
        for stage in stages
        if stage.loss or stage.dev
    )


def _thin(points: list[Point]) -> tuple[Point, ...]:
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    sampled = points[::-stride]  # From the end, because the last point matters most to a reader.
    return tuple(reversed(sampled))
