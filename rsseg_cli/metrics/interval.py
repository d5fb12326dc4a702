"""A number with the interval that it lies in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A share 0..1 and its 95 % interval; no interval where nothing says how sure it is."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Estimate:
        """Make one; ends that are NaN are not known."""
        sure = not (math.isnan(low) or math.isnan(high))
        return cls(value, low if sure else None, high if sure else None)

    @classmethod
    def known(cls, value: float, low: float, high: float) -> Estimate | None:
        """Make one, or None when the value itself is NaN."""
        return None if math.isnan(value) else cls.of(value, low, high)

    @classmethod
    def from_json(cls, found: dict[str, Any] | None) -> Estimate | None:
        """Read what `asdict` gave."""
        return None if found is None else cls(**found)
