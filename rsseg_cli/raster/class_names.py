"""Class names and colours of a map, as GDAL stores them beside a raster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from rsseg_cli.classes import IGNORE, Class, classes_from_json, default_color
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.number_format import counted, listed
from rsseg_cli.raster.decode import Color
from rsseg_cli.raster.grid import blocks
from rsseg_cli.raster.labels import color_entries
from rsseg_cli.raster.scene import Scene

# Usage of a column of an attribute table (GDAL's GFU_* codes).
_NAME, _MIN, _VALUE, _RED, _GREEN, _BLUE = "2", "3", "5", "6", "7", "8"

_TAG = "classes"


def classes_tag(classes: Sequence[Class]) -> dict[str, str]:
    """Return the tag that stores the classes of a soft map, since GDAL has no field for them."""
    return {_TAG: json.dumps([cls.to_json() for cls in classes])}


def _from_tag(path: str | PathLike[str]) -> list[Class]:
    if not Path(path).is_file():
        return []
    try:
        with rasterio.open(path) as file:
            tag = file.tags().get(f"rsseg_{_TAG}")
    except RasterioError:
        return []  # reading the pixels raises the error
    try:
        return classes_from_json(json.loads(tag)) if tag else []
    except ValueError as error:
        raise UnreadableError(
            f"the classes in the tag rsseg_{_TAG} cannot be read: {error}",
            where=fspath(path),
            fix="predict the map again",
        ) from error


def read_classes(path: str | PathLike[str]) -> list[Class]:
    """Read the classes of a map from `<map>.aux.xml`, or from the tag of a soft map.

    Names are those of the raster attribute table, else the category names. Colours are those of
    that table, else of the colour table in the file. The list is empty without names: the sidecar
    may hold only statistics, which programs that display a map store there.

    Raises:
        UnreadableError: The sidecar is not XML, or the tag does not list classes.
    """
    sidecar = Path(f"{fspath(path)}.aux.xml")
    if not sidecar.is_file():
        return _from_tag(path)
    try:
        band = ElementTree.parse(sidecar).getroot().find("PAMRasterBand[@band='1']")
    except ElementTree.ParseError as error:
        raise UnreadableError(
            f"the class names cannot be read ({error})",
            where=str(sidecar),
            fix="delete the file and give --classes",
        ) from error
    named = {} if band is None else _from_table(band) or _from_categories(band)
    named = {value: entry for value, entry in named.items() if 0 <= value < IGNORE}
    if not named:
        return _from_tag(path)
    colors = color_entries(path) if any(color is None for _, color in named.values()) else {}
    return [
        Class(value, name, color or colors.get(value) or default_color(index))
        for index, (value, (name, color)) in enumerate(sorted(named.items()))
    ]


def classes_in_use(*paths: str | PathLike[str]) -> list[Class]:
    """Build classes from the ids in maps, with the colours of the first colour table.

    Raises:
        RssegError: A file has several bands, or values that are not class ids (0..254).
    """
    ids = sorted(set().union(*map(_read_ids, paths)))
    colors = next((colors for path in paths if (colors := color_entries(path))), {})
    return [
        Class(value, f"class {value}", colors.get(value) or default_color(index))
        for index, value in enumerate(ids)
    ]


def _read_ids(path: str | PathLike[str]) -> set[int]:
    """Return the ids in a raster, except `IGNORE`."""
    ids: set[int] = set()
    with Scene.open(path, warn=False) as scene:
        if scene.count != 1 or scene.dtype.startswith("float"):
            raise RssegError(
                f"{scene.dtype} in {counted(scene.count, 'band')} is not a raster of class ids",
                where=fspath(path),
                fix="--classes with the dataset.yaml or the map that lists them",
            )
        for window in blocks(scene.width, scene.height, (1024, 4096)):
            samples, valid = scene.read(window)
            ids |= set(np.unique(samples[0][valid]).tolist())
    ids -= {IGNORE}
    invalid = sorted(value for value in ids if not 0 <= value < IGNORE)
    if invalid:
        raise RssegError(
            f"{listed(invalid, 5)} cannot be class ids (0 to {IGNORE - 1})",
            where=fspath(path),
            fix="--classes with a dataset.yaml whose `remap` or `ignore` lists these values",
        )
    return ids


_Named = dict[int, tuple[str, Color | None]]
"""Name and colour by id."""


def _from_table(band: ElementTree.Element) -> _Named:
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return {}
    usages = [_text(field.find("Usage")) for field in table.iter("FieldDefn")]
    column = {usage: index for index, usage in enumerate(usages)}
    value = column.get(_VALUE, column.get(_MIN))
    if value is None or _NAME not in column:
        return {}
    has_colors = {_RED, _GREEN, _BLUE} <= column.keys()
    named: _Named = {}
    for row in table.iter("Row"):
        cells = [_text(cell) for cell in row.iter("F")]
        name = cells[column[_NAME]]
        if name:
            red, green, blue = (cells[column.get(usage, 0)] for usage in (_RED, _GREEN, _BLUE))
            color = (int(red), int(green), int(blue)) if has_colors else None
            named[int(float(cells[value]))] = (name, color)
    return named


def _from_categories(band: ElementTree.Element) -> _Named:
    names = map(_text, band.iterfind("CategoryNames/Category"))
    return {value: (name, None) for value, name in enumerate(names) if name}


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None or element.text is None else element.text.strip()
