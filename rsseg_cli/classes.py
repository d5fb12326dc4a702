"""Classes of a dataset: id, name and colour."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IGNORE = 255
"""Label of pixels without a class, which losses and scores leave out; nodata in maps."""


@dataclass(frozen=True)
class Class:
    """One class of a dataset."""

    id: int
    """Number in labels and maps, 0..254."""
    name: str
    color: tuple[int, int, int]
    """(red, green, blue), each 0..255."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, `color` as a list."""
        return {"id": self.id, "name": self.name, "color": list(self.color)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Class:
        """Build a class from the result of `to_json`."""
        return cls(entry["id"], entry["name"], tuple(entry["color"]))

    @property
    def hex_color(self) -> str:
        """Colour as `#rrggbb`."""
        return hex_color(self.color)


def hex_color(color: tuple[int, int, int]) -> str:
    """Return (red, green, blue), each 0..255, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def default_color(index: int) -> tuple[int, int, int]:
    """Return a colour of an infinite palette; hues advance by the golden angle."""
    hue = (0.11 + index * 0.61803398875) % 1.0
    value = (0.85, 0.65, 0.95)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, value)
    return round(red * 255), round(green * 255), round(blue * 255)
