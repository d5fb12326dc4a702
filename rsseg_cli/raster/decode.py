"""Decodes the values of labels (ids, colours, one-hot bands, attributes) to class indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted, listed

Color: TypeAlias = tuple[int, int, int]
Value: TypeAlias = int | float | str | Color
Encoding = Literal["index", "palette", "rgb", "onehot", "threshold", "vector"]
Labels: TypeAlias = NDArray[np.uint8]

_UNKNOWN = -1
_UNSEEN = -2


@dataclass(frozen=True)
class LabelCode:
    """How labels encode classes. A label index is a position in `classes`."""

    classes: tuple[Class, ...]
    values: tuple[Value | None, ...] = ()
    """Value of each class in the file where that is not its id or name; may be empty."""
    encoding: Encoding = "index"
    ignore: tuple[Value, ...] = ()
    remap: tuple[tuple[int, int], ...] = ()
    """(id in the file, id of a class)."""
    field: str | None = None
    """Attribute of vector labels; None: every polygon is the one class besides background."""
    background: int | None = None
    """Index of the class outside polygons; None: no class."""
    tolerance: float = 30.0
    threshold: float = 127.5

    def value(self, index: int) -> Value | None:
        """Return the value of a class in the file, None where it is its id or name."""
        return self.values[index] if self.values else None

    def onehot_bands(self) -> list[int]:
        """List the bands of a one-hot label, from 1, up to the last that is a class."""
        bands = [self.onehot_band(index) for index in range(len(self.classes))]
        return list(range(1, max(bands) + 1))

    def onehot_band(self, index: int) -> int:
        """Return the band of a one-hot label, from 1, that stands for a class."""
        value = self.value(index)
        return value if isinstance(value, int) else index + 1

    def ids(self) -> dict[int, int]:
        """Map ids in a file to class indices, `IGNORE` for ignored ids."""
        index_of = {cls.id: index for index, cls in enumerate(self.classes)}
        ignored = {value: IGNORE for value in self.ignore if isinstance(value, int)}
        remapped = {theirs: index_of[ours] for theirs, ours in self.remap}
        own = {
            value if isinstance(value := self.value(index), int) else cls.id: index
            for index, cls in enumerate(self.classes)
        }
        return own | ignored | remapped

    def colors(self) -> dict[Color, int]:
        """Map colours in a file to class indices, `IGNORE` for ignored colours."""
        found = {value: IGNORE for value in self.ignore if isinstance(value, tuple)}
        for index, cls in enumerate(self.classes):
            value = self.value(index)
            found[value if isinstance(value, tuple) else cls.color] = index
        return found

    def attributes(self) -> dict[str, int]:
        """Map attribute values (as text) to class indices, `IGNORE` for ignored values."""
        found = {as_text(value): IGNORE for value in self.ignore}
        for index, cls in enumerate(self.classes):
            value = self.value(index)
            texts = (cls.name, cls.id) if value is None else (value,)
            found |= {as_text(each): index for each in texts}
        return found


def as_text(value: object) -> str:
    """Write an attribute value so that 1, 1.0, "1" and " 1 " are the same."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def decode(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, *, where: str
) -> Labels:
    """Return class indices for the values of a label raster.

    Args:
        values: (bands, h, w) as stored; a palette is already applied.
        valid: (h, w) False at nodata.
        code: How the values encode classes.
        where: Name of the file in errors.

    Returns:
        (h, w) class indices, `IGNORE` where there is none.

    Raises:
        RssegError: There are values that are neither a class nor ignored.
    """
    if code.encoding == "onehot":
        labels = _decode_onehot(values, code)
    elif code.encoding in ("rgb", "palette"):
        labels = _decode_colors(values, valid, code, where)
    elif code.encoding == "threshold":
        # Masks are often stored as grey in three bands.
        labels = (values[0] > code.threshold).astype(np.uint8)
        for ignored in code.ignore:
            labels[values[0] == ignored] = IGNORE
    elif len(values) != 1:
        raise RssegError(
            f"the label has {len(values)} bands where ids need one",
            where=where,
            fix="`encoding: rgb` or `encoding: onehot` in dataset.yaml",
        )
    else:
        labels = _decode_ids(values[0], valid, code, where)
    labels[~valid] = IGNORE
    return labels


@lru_cache(maxsize=16)
def _id_table(code: LabelCode) -> NDArray[np.int16]:
    table = np.full(2**16, _UNKNOWN, np.int16)
    for value, index in code.ids().items():
        if 0 <= value < len(table):
            table[value] = index
    return table


def decode_ids(values: NDArray[Any], code: LabelCode) -> tuple[Labels, NDArray[np.bool_]]:
    """Convert ids to class indices.

    Args:
        values: (h, w) ids.
        code: The classes, ignored and remapped ids.

    Returns:
        (h, w) class indices, `IGNORE` for ignored ids; (h, w) True where an id is unknown.
    """
    table = _id_table(code)
    if values.dtype in (np.uint8, np.uint16):
        indices = table[values]
    else:
        whole = values.astype(np.int64)
        known = (whole >= 0) & (whole < len(table)) & (whole == values)
        indices = np.where(known, table[np.where(known, whole, 0)], _UNKNOWN)
        for value in (each for each in code.ids() if not 0 <= each < len(table)):
            indices[values == value] = code.ids()[value]
    return indices.astype(np.uint8), indices == _UNKNOWN


def _decode_ids(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, where: str
) -> Labels:
    labels, unknown = decode_ids(values, code)
    if (unknown & valid).any():
        _refuse(np.unique(values[unknown & valid]), code, where)
    return labels


def _refuse(found: NDArray[Any], code: LabelCode, where: str) -> None:
    shown = listed([as_text(value) for value in found], 10)
    known = ", ".join(f"{cls.id} {cls.name}" for cls in code.classes)
    raise RssegError(
        f"the raster holds ids that are not classes: {shown}",
        where=where,
        fix="the class list it was written with, or add them to `classes`, `remap` or `ignore` in "
        f"dataset.yaml (classes: {known})",
    )


def _decode_onehot(values: NDArray[Any], code: LabelCode) -> Labels:
    """Return the class whose band is set; the first where several are."""
    labels = np.full(values.shape[1:], IGNORE, np.uint8)
    for index in reversed(range(len(code.classes))):
        labels[values[code.onehot_band(index) - 1] > 0] = index
    return labels


class ColorTable:
    """Class of each of the 2^24 colours, computed when a colour is first seen."""

    def __init__(self, code: LabelCode) -> None:
        known = code.colors()
        self.names = [tuple(color) for color in known]
        self._centres = np.array(self.names, np.float64)  # (K, 3)
        self._indices = np.array(list(known.values()), np.int16)
        self._tolerance = code.tolerance
        self._table = np.full(2**24, _UNSEEN, np.int16)
        self.inexact: dict[Color, float] = {}
        """Colours that were taken for the nearest known one, and their distance to it."""

    def look_up(self, packed: NDArray[np.int64]) -> NDArray[np.int16]:
        """Map packed colours 0xRRGGBB to class indices, -1 where no class is near enough."""
        indices = self._table[packed]
        unseen = np.unique(packed[indices == _UNSEEN])
        if unseen.size:
            colors = np.stack([unseen >> 16, unseen >> 8 & 255, unseen & 255], axis=1)
            apart = np.linalg.norm(colors[:, None] - self._centres[None], axis=2)
            nearest, distance = apart.argmin(1), apart.min(1)
            near = distance <= self._tolerance
            self._table[unseen] = np.where(near, self._indices[nearest], _UNKNOWN)
            for color, far in zip(colors[near], distance[near], strict=True):
                if far > 0:
                    self.inexact[(int(color[0]), int(color[1]), int(color[2]))] = float(far)
            indices = self._table[packed]
        return indices


@lru_cache(maxsize=2)
def color_table(code: LabelCode) -> ColorTable:
    """Share one table (32 MB) among all files of a dataset."""
    return ColorTable(code)


def _decode_colors(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, where: str
) -> Labels:
    if len(values) < 3:
        raise RssegError(
            f"the label has {counted(len(values), 'band')}, not the three of a colour",
            where=where,
            fix="`encoding: index` in dataset.yaml, or `palette` for a colour table",
        )
    red, green, blue = (band.astype(np.int64) for band in values[:3])
    packed = red << 16 | green << 8 | blue
    indices = color_table(code).look_up(packed)
    unknown = (indices == _UNKNOWN) & valid
    if unknown.any():
        colors = np.unique(packed[unknown])
        shown = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in colors[:5])
        raise RssegError(
            f"no class for {counted(len(colors), 'colour')} of the label: {shown}"
            + (", ..." if len(colors) > 5 else ""),
            where=where,
            fix="add the colour to a class (`value`) or to `ignore`, or raise `tolerance`",
        )
    return indices.astype(np.uint8)
