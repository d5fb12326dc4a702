"""Classes of a dataset: id, name and colour."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
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
    def from_json(cls, entry: object) -> Class:
        """Build a class from the result of `to_json`.

        Raises:
            ValueError: A field is missing, or of another type or range.
        """
        match entry:
            case {"id": int(number), "name": str(name), "color": [int(), int(), int()] as color}:
                if 0 <= number < IGNORE and type(number) is int and _are_bytes(color):
                    return cls(number, name, (color[0], color[1], color[2]))
        raise ValueError(
            f"{entry!r:.80} is not an id of 0 to {IGNORE - 1}, a name and a color of three bytes"
        )

    @property
    def hex_color(self) -> str:
        """Colour as `#rrggbb`."""
        return hex_color(self.color)


def classes_from_json(entries: object) -> list[Class]:
    """Build classes from a list of results of `Class.to_json`.

    Raises:
        ValueError: The list is missing or empty, an entry is not a class, or an id is repeated.
    """
    if not isinstance(entries, list) or not entries:
        raise ValueError("a list of classes is missing")
    classes = [Class.from_json(entry) for entry in entries]
    ids = [cls.id for cls in classes]
    repeated = [number for number in dict.fromkeys(ids) if ids.count(number) > 1]
    if repeated:
        raise ValueError(f"class ids are repeated: {', '.join(map(str, repeated))}")
    return classes


def hex_color(color: tuple[int, int, int]) -> str:
    """Return (red, green, blue), each 0..255, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def default_color(index: int) -> tuple[int, int, int]:
    """Return a colour of an infinite palette; hues advance by the golden angle."""
    hue = (0.11 + index * 0.61803398875) % 1.0
    value = (0.85, 0.65, 0.95)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _are_bytes(values: Sequence[object]) -> bool:
    return all(type(value) is int and 0 <= value <= 255 for value in values)
