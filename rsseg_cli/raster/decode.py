"""Decoding of label values (ids, colours, one-hot bands, attributes) to class indices."""

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
    """Encoding of classes in labels. A class index is a position in `classes`."""

    classes: tuple[Class, ...]
    values: tuple[Value | None, ...] = ()
    """Value of each class in the file, None where that is its id or name; empty: all None."""
    encoding: Encoding = "index"
    ignore: tuple[Value, ...] = ()
    remap: tuple[tuple[int, int], ...] = ()
    """Pairs of an id in the file and the id of its class."""
    field: str | None = None
    """Attribute of polygons with the class; None: all are of the one class besides background."""
    background: int | None = None
    """Class index outside polygons; None: no class there."""
    tolerance: float = 30.0
    """Largest distance of a colour to that of its class, in RGB units."""
    threshold: float = 127.5
    """Largest value of class 0 with the encoding "threshold"."""

    def value(self, index: int) -> Value | None:
        """Return the value of a class in the file; None where it is its id or name."""
        return self.values[index] if self.values else None

    def onehot_bands(self) -> list[int]:
        """Return the bands of a one-hot label, from 1 to the last that is a class."""
        last = max(self.onehot_band(index) for index in range(len(self.classes)))
        return list(range(1, last + 1))

    def onehot_band(self, index: int) -> int:
        """Return the band of a class in a one-hot label, from 1."""
        value = self.value(index)
        return value if isinstance(value, int) else index + 1

    def ids(self) -> dict[int, int]:
        """Return class indices by id in the file, `IGNORE` for ignored ids."""
        index_of = {cls.id: index for index, cls in enumerate(self.classes)}
        ignored = {value: IGNORE for value in self.ignore if isinstance(value, int)}
        remapped = {in_file: index_of[class_id] for in_file, class_id in self.remap}
        listed_ids = {
            value if isinstance(value := self.value(index), int) else cls.id: index
            for index, cls in enumerate(self.classes)
        }
        return listed_ids | ignored | remapped

    def class_ids(self) -> set[int]:
        """Return the ids in a file that are classes."""
        return {value for value, index in self.ids().items() if index != IGNORE}

    def colors(self) -> dict[Color, int]:
        """Return class indices by colour in the file, `IGNORE` for ignored colours."""
        indices = {value: IGNORE for value in self.ignore if isinstance(value, tuple)}
        for index, cls in enumerate(self.classes):
            value = self.value(index)
            indices[value if isinstance(value, tuple) else cls.color] = index
        return indices

    def attributes(self) -> dict[str, int]:
        """Return class indices by attribute value as text, `IGNORE` for ignored values."""
        indices = {as_text(value): IGNORE for value in self.ignore}
        for index, cls in enumerate(self.classes):
            value = self.value(index)
            texts = (cls.name, cls.id) if value is None else (value,)
            indices |= {as_text(text): index for text in texts}
        return indices


def as_text(value: object) -> str:
    """Return an attribute value as text that is the same for 1, 1.0, "1" and " 1 "."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def decode(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, *, where: str
) -> Labels:
    """Return class indices (h, w) for the values of a label raster, `IGNORE` without a class.

    Args:
        values: (bands, h, w) as stored; a palette is already applied.
        valid: (h, w) False for nodata.
        code: Encoding of the classes.
        where: Name of the file in errors.

    Raises:
        RssegError: A value is neither a class nor ignored.
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


def _decode_ids(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, where: str
) -> Labels:
    table = _id_table(code)
    if values.dtype in (np.uint8, np.uint16):
        indices = table[values]
    else:
        whole = values.astype(np.int64)
        in_table = (whole >= 0) & (whole < len(table)) & (whole == values)
        indices = np.where(in_table, table[np.where(in_table, whole, 0)], _UNKNOWN)
        for value, index in code.ids().items():
            if not 0 <= value < len(table):
                indices[values == value] = index
    unknown = (indices == _UNKNOWN) & valid
    if unknown.any():
        ids = listed([as_text(value) for value in np.unique(values[unknown])], 10)
        classes = ", ".join(f"{cls.id} {cls.name}" for cls in code.classes)
        raise RssegError(
            f"the raster holds ids that are not classes: {ids}",
            where=where,
            fix="the class list it was written with, or add them to `classes`, `remap` or `ignore` "
            f"in dataset.yaml (classes: {classes})",
        )
    labels: Labels = indices.astype(np.uint8)
    return labels


def _decode_onehot(values: NDArray[Any], code: LabelCode) -> Labels:
    """Return the first class whose band is not 0."""
    labels = np.full(values.shape[1:], IGNORE, np.uint8)
    for index in reversed(range(len(code.classes))):
        labels[values[code.onehot_band(index) - 1] > 0] = index
    return labels


class ColorTable:
    """Class index of each of the 2^24 colours, computed on the first use of a colour."""

    def __init__(self, code: LabelCode) -> None:
        colors = code.colors()
        self._colors = np.array(list(colors), np.float64)  # (K, 3)
        self._indices = np.array(list(colors.values()), np.int16)
        self._tolerance = code.tolerance
        self._table = np.full(2**24, _UNSEEN, np.int16)
        self.inexact: dict[Color, float] = {}
        """Distance of each colour that is not exactly that of its class."""

    def look_up(self, packed: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return class indices of packed colours 0xRRGGBB, -1 beyond the tolerance."""
        indices = self._table[packed]
        unseen = np.unique(packed[indices == _UNSEEN])
        if unseen.size:
            colors = np.stack([unseen >> 16, unseen >> 8 & 255, unseen & 255], axis=1)
            distances = np.linalg.norm(colors[:, None] - self._colors[None], axis=2)
            nearest, distance = distances.argmin(1), distances.min(1)
            known = distance <= self._tolerance
            self._table[unseen] = np.where(known, self._indices[nearest], _UNKNOWN)
            inexact = known & (distance > 0)
            for color, error in zip(colors[inexact], distance[inexact], strict=True):
                self.inexact[(int(color[0]), int(color[1]), int(color[2]))] = float(error)
            indices = self._table[packed]
        return indices


@lru_cache(maxsize=2)
def color_table(code: LabelCode) -> ColorTable:
    """Return the one table (32 MB) for all files of a dataset."""
    return ColorTable(code)


def _decode_colors(
    values: NDArray[Any], valid: NDArray[np.bool_], code: LabelCode, where: str
) -> Labels:
    if len(values) < 3:
        raise RssegError(
            f"the label has {counted(len(values), 'band')}, but colours need three",
            where=where,
            fix="`encoding: index` in dataset.yaml, or `palette` for a colour table",
        )
    red, green, blue = (band.astype(np.int64) for band in values[:3])
    packed = red << 16 | green << 8 | blue
    indices = color_table(code).look_up(packed)
    unknown = (indices == _UNKNOWN) & valid
    if unknown.any():
        colors = np.unique(packed[unknown])
        texts = listed([f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in colors[:6]], 5)
        raise RssegError(
            f"no class for {counted(len(colors), 'colour')} of the label: {texts}",
            where=where,
            fix="add the colour to a class (`value`) or to `ignore`, or raise `tolerance`",
        )
    return indices.astype(np.uint8)
