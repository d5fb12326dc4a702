"""Numbers and lists as text."""

from __future__ import annotations

from collections.abc import Sequence

UNDEFINED = "-"
"""Text of a score that is not defined."""


def counted(number: int, noun: str) -> str:
    """Format a number and its noun: `1 label`, `1,200 labels`, `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def percent(fraction: float | None) -> str:
    """Format a fraction as percent with one decimal and no percent sign; `-` for None."""
    return UNDEFINED if fraction is None else f"{100 * fraction:.1f}"


def signed_percent(difference: float) -> str:
    """Format a difference of two fractions in percentage points, always with + or -."""
    return f"{100 * difference:+.1f}"


def listed(names: Sequence[object], most: int) -> str:
    """Join the first `most` names with commas, and add `...` if there are others."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
