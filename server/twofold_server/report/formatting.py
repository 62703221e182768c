"""Numbers for people: scores in points, with a true minus sign, and times."""

from __future__ import annotations


def score(value: float) -> str:
    """Say a share from 0 to 1 in points."""
    return f"{100 * value:.1f}"


def signed(difference: float) -> str:
    """Say a difference of two shares in points, with its sign."""
    points = round(100 * difference, 1)
    if points == 0:
        return "±0.0"
    return f"{'+' if points > 0 else MINUS}{abs(points):.1f}"


def plural(count: int, noun: str) -> str:
    """Say how many there are."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Say a time in the two largest units that matter."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


MINUS = "−"  # noqa: RUF001 -- the sign, not the hyphen.
