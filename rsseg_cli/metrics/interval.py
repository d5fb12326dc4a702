"""Estimates with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A fraction 0..1 and its 95 % interval, whose ends are None if undefined."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Estimate:
        """Build an estimate; without an interval if an end is NaN."""
        if math.isnan(low) or math.isnan(high):
            return cls(value, None, None)
        return cls(value, low, high)

    @classmethod
    def known(cls, value: float, low: float, high: float) -> Estimate | None:
        """Build an estimate; None if the value is NaN."""
        return None if math.isnan(value) else cls.of(value, low, high)

    @classmethod
    def from_json(cls, document: dict[str, Any] | None) -> Estimate | None:
        """Build an estimate from the output of `asdict`."""
        return None if document is None else cls(**document)
