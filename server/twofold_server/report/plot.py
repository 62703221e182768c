"""Charts as inline SVG that stretch with the page.

A drawing has coordinates from 0 to 100 on both axes and is stretched to its box, but strokes and dots are not. Words are HTML
over the drawing, so that a phone shows them as large as any other text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to the range 0 to 100, with ticks at round numbers. A *flipped* scale has its low end at 100."""

    low: float
    high: float
    step: float
    flipped: bool = False

    @classmethod
    def around(
        cls,
        values: Iterable[float],
        *,
        ticks: int = 4,
        minimum: float = -math.inf,
        maximum: float = math.inf,
        flipped: bool = False,
    ) -> Scale:
        """Return a scale that covers the values, starts and ends at a tick, and stays within *minimum* and *maximum*."""
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        spread = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
        rough = spread / ticks
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * (1 - 1e-9))
        first, last = math.floor(low / step) * step, math.ceil(high / step) * step
        if first == last:
            first, last = first - step, last + step
        return cls(max(first, minimum), min(last, maximum), step, flipped)

    @classmethod
    def within(cls, values: Iterable[float], *, ticks: int = 4) -> Scale:
        """Return a scale from the smallest to the largest value."""
        known = list(values)
        return cls(min(known), max(known), cls.around(known, ticks=ticks).step)

    def __call__(self, value: float) -> float:
        """Return the position of a value, from 0 to 100."""
        span = self.high - self.low
        position = 100 * ((min(max(value, self.low), self.high) - self.low) / span) if span > 0 else 50.0
        return 100 - position if self.flipped else position

    @property
    def ticks(self) -> list[float]:
        """The round numbers on the scale."""
        count = math.floor((self.high - self.low) / self.step + 1e-6)
        first = math.ceil(self.low / self.step - 1e-6) * self.step
        return [tick for n in range(count + 1) if (tick := first + n * self.step) <= self.high + 1e-9]


def chart(shapes: Iterable[Markup], words: Iterable[Markup] = (), *, label: str, class_: str) -> Markup:
    """Return a box with a drawing of the shapes and the words over it. *label* describes it for screen readers."""
    template = Markup(
        '<div class="chart {}">'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>{}</div>'
    )
    return template.format(class_, label, Markup().join(shapes), Markup().join(words))


def line(points: Sequence[Point], class_: str) -> Markup:
    """Draw a line through points."""
    positions = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return Markup('<polyline points="{}" class="line {}"></polyline>').format(positions, class_)


def segment(start: Point, end: Point, class_: str, title: str = "") -> Markup:
    """Draw a straight line, with an optional tooltip."""
    template = Markup('<line x1="{:.2f}" y1="{:.2f}" x2="{:.2f}" y2="{:.2f}" class="{}">{}</line>')
    return template.format(*start, *end, class_, _tooltip(title))


def dot(position: Point, class_: str, title: str = "") -> Markup:
    """Draw a dot that stays round when its drawing is stretched: a very short line with round ends."""
    x, y = position
    return segment((x, y), (x + 0.001, y), f"dot {class_}", title)


def box(start: Point, end: Point, class_: str, title: str) -> Markup:
    """Fill a rectangle between its upper left and its lower right corner, with a tooltip."""
    (left, top), (right, bottom) = start, end
    template = Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" class="{}">{}</rect>')
    return template.format(left, top, max(0.0, right - left), max(0.0, bottom - top), class_, _tooltip(title))


def word(x: float, y: float, text: str, class_: str) -> Markup:
    """Place a word over a drawing, centred on a position in its coordinates."""
    return Markup('<span class="word {}" style="left:{:.2f}%;top:{:.2f}%">{}</span>').format(class_, x, y, text)


def _tooltip(title: str) -> Markup:
    return Markup("<title>{}</title>").format(title) if title else Markup()
