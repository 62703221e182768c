"""The three figures before and after, and what the gate saw of the protected one."""

from __future__ import annotations

from collections.abc import Iterator

from twofold_checkpoint.manifest import other_head
from twofold_checkpoint.protocol.events import Compared
from twofold_checkpoint.protocol.findings import Interval, Measurement

from twofold_server.report.document import Document
from twofold_server.report.markup import Markup, tag
from twofold_server.report.numbers import MINUS, plural, score, signed
from twofold_server.report.plot import Scale, box, chart, dot, drawing, segment, word

TASKS = {"classifier": "labels", "ner": "entities"}
METRICS = {"accuracy": "accuracy", "f1": "F1"}
AGAINST = {"base": "its base", "approved": "the checkpoint that a person last approved"}
_SLACK = 1e-7
"""Points. What the gate lets pass as rounding; a fall of the margin itself is within it for old labels only."""


def figures_section(document: Document) -> Markup | None:
    """Show the three figures as cards."""
    if not document.figures:
        return None
    return tag("div", (_card(figure, document) for figure in document.figures), class_="cards")


def _card(measurement: Measurement, document: Document) -> Markup:
    adapted = document.request.head
    subtitles = {
        "protected": f"the {TASKS[other_head(adapted)]}, which must not suffer",
        "retained": f"the {TASKS[adapted]} that were known before",
        "new": f"the {TASKS[adapted]} of the given data",
    }
    last = measurement.after or measurement.before
    return tag(
        "article",
        tag("h3", measurement.figure.capitalize(), " ", tag("small", subtitles[measurement.figure])),
        tag(
            "p",
            tag("span", score(measurement.before.value), " → ", class_="from") if measurement.after else None,
            tag("strong", score(last.value)),
            " ",
            tag("span", METRICS[measurement.metric], class_="metric"),
            _difference(measurement, document),
            class_="big",
        ),
        _intervals(measurement),
        tag("p", _facts(measurement, document), class_="facts"),
        class_=f"card {measurement.figure}",
    )


def _difference(measurement: Measurement, document: Document) -> Markup | None:
    """Show how far the score moved, in the colour of what the gate makes of it, and what it was allowed to fall."""
    difference = measurement.difference
    if difference is None:
        return None
    exact = document.proofs.exact_texts is not None
    margins = {
        "protected": 0.0 if exact else document.request.margin or 0.0,
        "retained": document.request.retained_margin,
    }
    margin = margins.get(measurement.figure, 0.0)
    points = 100 * difference.value
    fallen = points < -_SLACK
    if measurement.figure == "protected":
        proven = exact or 100 * difference.low > -margin
        beyond = fallen and points <= -margin + _SLACK
        mood = "bad" if beyond else "good" if proven or points > 0 else "unsure" if fallen else "even"
    else:
        beyond = points < -margin - _SLACK
        mood = "bad" if beyond else "good" if points > _SLACK else "even"
    allowed = tag("small", f"of {margin:g} allowed") if fallen and margin else None
    return tag("span", signed(difference.value), " " if allowed else None, allowed, class_=f"chip {mood}")


def _intervals(measurement: Measurement) -> Markup:
    """Draw the scores before and after on one scale, each with its interval."""
    rows = [(25.0, "before", measurement.before), *([(75.0, "after", measurement.after)] if measurement.after else [])]
    scale = Scale.around((100 * end for _, _, of in rows for end in (of.low, of.high)), ticks=3, most=100.0)

    def row(height: float, when: str, of: Interval) -> Iterator[Markup]:
        text = f"{when} {score(of.value)}, between {score(of.low)} and {score(of.high)}"
        yield segment((scale(100 * of.low), height), (scale(100 * of.high), height), f"range {when}", text)
        yield dot((scale(100 * of.value), height), when, text)

    lines = (segment((scale(tick), 0), (scale(tick), 100), "grid") for tick in scale.ticks)
    shapes = (row(*entry) for entry in rows)
    values = [f"{when} {score(of.value)} ({score(of.low)} to {score(of.high)})" for _, when, of in rows]
    label = f"{measurement.figure}: {', '.join(values)}"
    ticks = (word(scale(tick), 100, f"{tick:g}", "tick") for tick in scale.ticks)
    return chart(drawing(lines, shapes, label=label), ticks, class_="intervals")


def _facts(measurement: Measurement, document: Document) -> Iterator[object]:
    yield f"{plural(measurement.examples, 'example')}"
    if measurement.figure == "protected" and document.proofs.exact_texts is not None:
        yield " · the same bytes answer, so nothing can differ"  # An interval would say what is not known of other texts.
    elif measurement.difference is not None:
        yield f" · difference {signed(measurement.difference.low)} to {signed(measurement.difference.high)}"
        yield f" · {measurement.gained} fixed, {measurement.lost} lost"
    if measurement.calibration_before is not None:
        later = "" if measurement.calibration_after is None else f" → {score(measurement.calibration_after)}"
        yield f" · calibration error {score(measurement.calibration_before)}{later}"


def gate_section(document: Document) -> Markup | None:
    """Show what is proven of the protected task: the interval of its fall beside the margin."""
    if not document.gate:
        return None
    exact = document.proofs.exact_texts
    # Exact in fact, whatever was asked for: a fork or a frozen trunk leaves the protected path as it was.
    margin = None if exact is not None else document.request.margin
    if exact is not None:
        lead = (
            "The protected path has the same bytes as before: the gate was exact. It answers "
            f"{plural(exact, 'text')} as before, compared one by one, and no interval decides."
        )
    else:
        rule = (
            f"The whole interval must lie to the right of {MINUS}{margin:g} points, the margin."
            if margin is not None
            else "Protection was to be exact, so that this interval decides nothing."
        )
        lead = f"How far the protected task may have fallen, with 95 % on each side. {rule}"
    return tag(
        "section",
        tag("h2", "What the gate could prove"),
        tag("p", lead, class_="lead"),
        (
            _equal(comparison) if exact is not None and comparison.against == "base" else _compared(comparison, margin)
            for comparison in document.gate
        ),
    )


def _equal(comparison: Compared) -> Markup:
    """Show that nothing moved against the base: there is no interval where nothing is left to chance."""
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", f"Against {AGAINST[comparison.against]}: "),
            f"{score(comparison.before)} → {score(comparison.after)}.",
        ),
        tag("p", f"{plural(comparison.examples, 'example')}, all answered as before.", class_="facts"),
    )


def _compared(comparison: Compared, margin: float | None) -> Markup:
    low, high, middle = (
        100 * comparison.lower_bound,
        100 * comparison.upper_bound,
        100 * (comparison.after - comparison.before),
    )
    edge = None if margin is None else -margin
    scale = Scale.around([low, high, 0.0, *([] if edge is None else [1.5 * edge, -0.5 * edge])], least=-100.0, ticks=5)
    mood = "even" if edge is None else "good" if low > edge else "bad" if middle <= edge else "unsure"
    text = f"{middle:+.1f} points, between {low:+.2f} and {high:+.2f}"
    shapes = (
        None if edge is None else box(0, 0, scale(edge), 100, "forbidden", title="a fall beyond the margin"),
        (segment((scale(tick), 0), (scale(tick), 100), "grid") for tick in scale.ticks),
        segment((scale(0), 0), (scale(0), 100), "zero"),
        None if edge is None else segment((scale(edge), 0), (scale(edge), 100), "edge"),
        segment((scale(low), 50), (scale(high), 50), f"range {mood}", text),
        dot((scale(middle), 50), mood, text),
    )
    excluded = "" if edge is None else f" A fall of {max(0.0, -low):.2f} points or more is excluded."
    if edge is not None and comparison.needed_examples is not None:
        excluded += f" About {plural(comparison.needed_examples, 'example')} would decide instead."
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", f"Against {AGAINST[comparison.against]}: "),
            f"{score(comparison.before)} → {score(comparison.after)}.",
        ),
        chart(
            drawing(shapes, label=text),
            (word(scale(tick), 100, _tick(tick), "tick") for tick in scale.ticks),
            class_="proof",
        ),
        tag(
            "p",
            f"{plural(comparison.examples, 'example')}, {comparison.gained} answered better and {comparison.lost} worse than before.{excluded}",
            class_="facts",
        ),
    )


def _tick(points: float) -> str:
    return f"{points:+.4g}".replace("-", MINUS) if round(points, 6) else "0"
