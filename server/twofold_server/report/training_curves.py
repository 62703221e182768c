"""The training curves: dev score, guard checks, loss."""

from __future__ import annotations

from collections.abc import Sequence

from twofold_server.report.document import Document, GuardPoint, StageCurves
from twofold_server.report.formatting import plural, score
from twofold_server.report.markup import Markup, tag
from twofold_server.report.plot import Point, Scale, box, chart, dot, drawing, line, segment, word

ACTIONS = {"none": "within the allowed range", "restore": "the best state was restored", "leave": "the stage was ended"}
DOTS = 60
"""Largest number of points that are drawn as dots."""


def training_section(document: Document) -> Markup | None:
    """Show the curves of the training."""
    stages = document.stages
    charts = [chart for chart in (_dev(stages), _guard(stages), _loss(stages)) if chart is not None]
    if not charts:
        return None
    return tag("section", tag("h2", "Training"), tag("div", charts, class_="curves"))


def _dev(stages: Sequence[StageCurves]) -> Markup | None:
    values = [100 * point.value for stage in stages for point in stage.dev]
    if not values:
        return None
    across = _orders(stages)
    up = Scale.around(values, maximum=100.0, flipped=True)
    shapes: list[object] = [_grid(up)]
    words: list[object] = []
    for number, stage in enumerate(stages):
        points: list[Point] = [(across(point.order), up(100 * point.value)) for point in stage.dev]
        shapes.append(line(points, "dev"))
        if len(values) <= DOTS:
            titles = [f"{stage.name}: {score(point.value)}" for point in stage.dev]
            shapes += [dot(point, "dev", title) for point, title in zip(points, titles, strict=True)]
        if number and points:
            shapes.append(segment((points[0][0], 0), (points[0][0], 100), "stage"))
    return _panel(
        "Dev score",
        f"The adapted head on dev examples, which stop training and never judge; best {max(values):.1f}. "
        f"Stages: {', '.join(dict.fromkeys(stage.name for stage in stages))}.",
        drawing(shapes, label=f"dev score, first {values[0]:.1f}, best {max(values):.1f}"),
        [*words, *_left(up)],
    )


def _guard(stages: Sequence[StageCurves]) -> Markup | None:
    checks = [check for stage in stages for check in stage.guard]
    if not checks:
        return None
    across = _orders(stages)
    floor = 100 * (checks[0].baseline - checks[0].allowed)
    up = Scale.around(
        [floor, 100 * checks[0].baseline, *(100 * check.value for check in checks)], maximum=100.0, flipped=True
    )
    shapes = (
        box(0, up(100 * checks[0].baseline), 100, up(floor), "allowed", title="what the guard allows"),
        _grid(up),
        segment((0, up(100 * checks[0].baseline)), (100, up(100 * checks[0].baseline)), "zero", "baseline"),
        segment((0, up(floor)), (100, up(floor)), "edge", "floor"),
        line([(across(check.order), up(100 * check.value)) for check in checks], "guard"),
        (dot((across(check.order), up(100 * check.value)), check.action, _title(check)) for check in checks),
    )
    restored, ended = (sum(check.action == action for check in checks) for action in ("restore", "leave"))
    return _panel(
        "Guard",
        f"The protected task while shared blocks were trained. Of {plural(len(checks), 'check')}, {restored} restored the "
        f"best state and {ended} ended a stage. A state below the dashed line is discarded.",
        drawing(shapes, label=f"protected dev score over {plural(len(checks), 'check')}"),
        _left(up),
    )


def _title(check: GuardPoint) -> str:
    return f"{score(check.value)}: {ACTIONS.get(check.action, check.action)}"


def _loss(stages: Sequence[StageCurves]) -> Markup | None:
    points = [point for stage in stages for point in stage.loss]
    if len(points) < 2:
        return None
    up = Scale.around([0.0, *(point.value for point in points)], flipped=True)
    across = Scale.within(point.step for point in points)
    shapes = (
        _grid(up),
        line([(across(point.step), up(point.value)) for point in points], "loss"),
    )
    steps = (word(across(tick), 100, f"{tick:g}", "tick") for tick in across.ticks)
    return _panel(
        "Loss",
        f"Mean loss since the previous point, by step; {points[-1].value:.3f} at the end.",
        drawing(shapes, label=f"loss from {points[0].value:.3f} to {points[-1].value:.3f}"),
        [*_left(up), *steps],
    )


def _orders(stages: Sequence[StageCurves]) -> Scale:
    orders = [point.order for stage in stages for point in stage.dev]
    orders += [check.order for stage in stages for check in stage.guard]
    return Scale(min(orders), max(*orders, min(orders) + 1), 1)


def _grid(up: Scale) -> list[Markup]:
    return [segment((0, up(tick)), (100, up(tick)), "grid") for tick in up.ticks]


def _left(up: Scale) -> list[Markup]:
    return [word(0, up(tick), f"{tick:g}", "left") for tick in up.ticks]


def _panel(title: str, caption: str, drawn: Markup, words: Sequence[object]) -> Markup:
    return tag(
        "figure",
        tag("figcaption", tag("b", title), " ", caption),
        chart(drawn, words, class_="curve"),
    )
