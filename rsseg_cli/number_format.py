"""Numbers and lists as text."""

from __future__ import annotations

from collections.abc import Sequence

UNDEFINED = "-"
"""Text of a score that is not defined."""


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: `1 label`, `1,200 labels`, `2 classes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def percent(fraction: float | None) -> str:
    """Return a fraction in percent with one decimal, without the sign; `-` for None."""
    return UNDEFINED if fraction is None else f"{100 * fraction:.1f}"


def signed_percent(difference: float) -> str:
    """Return a difference of two fractions in percentage points, always with a sign."""
    return f"{100 * difference:+.1f}"


def listed(names: Sequence[object], most: int) -> str:
    """Return the first `most` names with commas between them, and `...` for the others."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
