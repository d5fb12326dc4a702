"""Classes: the number in a map, a name and a colour."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IGNORE = 255
"""Label of a pixel without a class: outside every loss, matching and score. Also nodata in maps."""


@dataclass(frozen=True)
class Class:
    """One class of a dataset.

    Attributes:
        id: The number written into maps and found in labels, 0..254.
        name: What it is called.
        color: (red, green, blue), each 0..255.
    """

    id: int
    name: str
    color: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """Return `id`, `name` and `color` (a list)."""
        return {"id": self.id, "name": self.name, "color": list(self.color)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Class:
        """Read what `to_json` returned."""
        return cls(entry["id"], entry["name"], tuple(entry["color"]))

    @property
    def hex_color(self) -> str:
        """Colour as `#rrggbb`."""
        return hex_color(self.color)


def hex_color(color: tuple[int, int, int]) -> str:
    """Return (red, green, blue), each 0..255, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def default_color(index: int) -> tuple[int, int, int]:
    """Return the `index`-th colour of an endless palette whose neighbours differ (golden angle)."""
    hue = (0.11 + index * 0.61803398875) % 1.0
    value = (0.85, 0.65, 0.95)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, value)
    return round(red * 255), round(green * 255), round(blue * 255)
