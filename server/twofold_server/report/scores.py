"""The scores before and after, and the gate's comparisons of the protected score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup
from twofold_checkpoint.protocol.events import Compared
from twofold_checkpoint.protocol.findings import Interval, Measurement

from twofold_server.report.document import Document
from twofold_server.report.formatting import MINUS, score
from twofold_server.report.plot import Scale, box, chart, dot, segment, word

_SLACK = 1e-7
"""Rounding tolerance of the gate, in points. Only for old labels does a drop equal to the margin still pass."""


@dataclass(frozen=True, slots=True)
class ScoreCard:
    """A score before and after. *tone* is the gate's judgement; *allowed* is the margin of a drop, or 0."""

    measurement: Measurement
    tone: str
    allowed: float
    chart: Markup


@dataclass(frozen=True, slots=True)
class GateChart:
    """A comparison of the protected score. If the protected path is unchanged, it has no chart."""

    compared: Compared
    chart: Markup | None


def score_cards(document: Document) -> list[ScoreCard]:
    """Return a card for each score."""
    return [ScoreCard(score, *_judge(score, document), _interval_chart(score)) for score in document.figures]


def gate_charts(document: Document) -> list[GateChart]:
    """Return the comparisons of the gate, with a chart unless the answers are the same as the base's."""
    exact = document.proofs.exact_texts is not None
    margin = None if exact else document.request.margin
    return [
        GateChart(compared, None if exact and compared.against == "base" else _gate_chart(compared, margin))
        for compared in document.gate
    ]


def _judge(measurement: Measurement, document: Document) -> tuple[str, float]:
    """Return the tone of a score's change, and the allowed drop if it dropped."""
    difference = measurement.difference
    if difference is None:
        return "even", 0.0
    exact = document.proofs.exact_texts is not None
    retained = document.request.retained_margin
    margins = {
        "protected": 0.0 if exact else document.request.margin or 0.0,
        "retained": math.inf if retained is None else retained,
    }
    margin = margins.get(measurement.figure, 0.0)
    points = 100 * difference.value
    dropped = points < -_SLACK
    if measurement.figure == "protected":
        proven = exact or 100 * difference.low > -margin
        beyond = dropped and points <= -margin + _SLACK
        tone = "bad" if beyond else "good" if proven or points > 0 else "unsure" if dropped else "even"
    else:
        beyond = points < -margin - _SLACK
        tone = "bad" if beyond else "good" if points > _SLACK else "even"
    return tone, margin if dropped and margin < math.inf else 0.0


def _interval_chart(measurement: Measurement) -> Markup:
    """Draw the scores before and after on one scale, each with its interval."""
    rows = [(25.0, "before", measurement.before), *([(75.0, "after", measurement.after)] if measurement.after else [])]
    scale = Scale.around((100 * end for _, _, of in rows for end in (of.low, of.high)), ticks=3, maximum=100.0)

    def shapes() -> Iterator[Markup]:
        yield from (segment((scale(tick), 0), (scale(tick), 100), "grid") for tick in scale.ticks)
        for height, when, interval in rows:
            low, high = (scale(100 * end) for end in (interval.low, interval.high))
            yield segment((low, height), (high, height), f"range {when}", _described(when, interval))
            yield dot((scale(100 * interval.value), height), when, _described(when, interval))

    label = f"{measurement.figure}: {'; '.join(_described(when, interval) for _, when, interval in rows)}"
    ticks = (word(scale(tick), 100, f"{tick:g}", "tick") for tick in scale.ticks)
    return chart(shapes(), ticks, label=label, class_="intervals")


def _described(when: str, interval: Interval) -> str:
    return f"{when} {score(interval.value)}, between {score(interval.low)} and {score(interval.high)}"


def _gate_chart(compared: Compared, margin: float | None) -> Markup:
    """Draw the change of the score with its interval, beside the margin that it must not cross."""
    low, high = 100 * compared.lower_bound, 100 * compared.upper_bound
    middle = 100 * (compared.after - compared.before)
    edge = None if margin is None else -margin
    around_edge = [] if edge is None else [1.5 * edge, -0.5 * edge]
    scale = Scale.around([low, high, 0.0, *around_edge], minimum=-100.0, ticks=5)
    tone = "even" if edge is None else "good" if low > edge else "bad" if middle <= edge else "unsure"
    label = f"{middle:+.1f} points, between {low:+.2f} and {high:+.2f}"

    def shapes() -> Iterator[Markup]:
        if edge is not None:
            yield box((0, 0), (scale(edge), 100), "forbidden", "a drop beyond the margin")
        yield from (segment((scale(tick), 0), (scale(tick), 100), "grid") for tick in scale.ticks)
        yield segment((scale(0), 0), (scale(0), 100), "zero")
        if edge is not None:
            yield segment((scale(edge), 0), (scale(edge), 100), "edge")
        yield segment((scale(low), 50), (scale(high), 50), f"range {tone}", label)
        yield dot((scale(middle), 50), tone, label)

    ticks = (word(scale(tick), 100, _tick(tick), "tick") for tick in scale.ticks)
    return chart(shapes(), ticks, label=label, class_="proof")


def _tick(points: float) -> str:
    return f"{points:+.4g}".replace("-", MINUS) if round(points, 6) else "0"
