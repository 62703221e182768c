"""Format numbers for the report: scores in points, with a typographic minus sign, and durations."""

from __future__ import annotations


def score(value: float) -> str:
    """Format a share from 0 to 1 in points."""
    return f"{100 * value:.1f}"


def signed(difference: float) -> str:
    """Format a difference of two shares in points, with its sign."""
    points = round(100 * difference, 1)
    if points == 0:
        return "±0.0"
    return f"{'+' if points > 0 else MINUS}{abs(points):.1f}"


def plural(count: int, noun: str) -> str:
    """Format a count with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration with at most two units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


MINUS = "−"  # noqa: RUF001 -- the sign, not the hyphen.
