"""Numbers with their noun."""

from __future__ import annotations


def counted(number: int, one: str) -> str:
    """Write a number and what it counts: `1 label`, `1,200 labels`, `2 classes`."""
    ending = "" if number == 1 else "es" if one.endswith("s") else "s"
    return f"{number:,} {one}{ending}"
