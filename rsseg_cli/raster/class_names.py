"""Class names and colours of a map, as GDAL keeps them beside a raster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from rsseg_cli.classes import IGNORE, Class, default_color
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.number_format import counted
from rsseg_cli.raster.grid import blocks
from rsseg_cli.raster.labels import color_entries
from rsseg_cli.raster.scene import Scene

# What a column of an attribute table is for (GDAL's GFU_* codes).
_NAME, _MIN, _VALUE, _RED, _GREEN, _BLUE = "2", "3", "5", "6", "7", "8"


_TAG = "classes"


def classes_tag(classes: Sequence[Class]) -> dict[str, str]:
    """Return a tag with the classes of a probability map; GDAL has no other place for them."""
    return {_TAG: json.dumps([cls.to_json() for cls in classes])}


def _from_tag(path: str | PathLike[str]) -> list[Class]:
    if not Path(path).is_file():
        return []
    try:
        with rasterio.open(path) as file:
            classes = json.loads(file.tags().get(f"rsseg_{_TAG}", "[]"))
    except RasterioError:
        return []  # the error comes with its pixels
    return [Class.from_json(entry) for entry in classes]


def read_classes(path: str | PathLike[str]) -> list[Class]:
    """Read the classes of a map from `<map>.aux.xml`, or from the tag of a soft map.

    Names are those of the raster attribute table, else the category names; colours are those of
    the table, else of the colour table in the file. A sidecar may name no classes: programs that
    show a map write its statistics there. The list is then empty.

    Raises:
        UnreadableError: The file is not XML.
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
    named = {value: row for value, row in named.items() if 0 <= value < IGNORE}
    if not named:
        return _from_tag(path)
    shown = color_entries(path) if any(color is None for _, color in named.values()) else {}
    return [
        Class(value, name, color or shown.get(value) or default_color(index))
        for index, (value, (name, color)) in enumerate(sorted(named.items()))
    ]


def classes_in_use(*paths: str | PathLike[str]) -> list[Class]:
    """Build classes from the ids in maps, in the colours of the first colour table.

    Raises:
        RssegError: A file has several bands, or values that are not class ids (0..254).
    """
    found: set[int] = set()
    for path in paths:
        found |= _ids(path)
    colors = next((colors for path in paths if (colors := color_entries(path))), {})
    return [
        Class(value, f"class {value}", colors.get(value) or default_color(index))
        for index, value in enumerate(sorted(found))
    ]


def _ids(path: str | PathLike[str]) -> set[int]:
    """Read through a raster, block by block, for the ids it holds."""
    found: set[int] = set()
    with Scene.open(path, warn=False) as scene:
        if scene.count != 1 or scene.dtype.startswith("float"):
            raise RssegError(
                f"{scene.dtype} in {counted(scene.count, 'band')} does not say its classes",
                where=fspath(path),
                fix="--classes with the dataset.yaml or the map that lists them",
            )
        for window in blocks(scene.width, scene.height, (1024, 4096)):
            samples, valid = scene.read(window)
            found |= set(np.unique(samples[0][valid]).tolist())
    found -= {IGNORE}
    wrong = sorted(value for value in found if not 0 <= value < IGNORE)
    if wrong:
        raise RssegError(
            f"{', '.join(map(str, wrong[:5]))} cannot be class ids (0 to {IGNORE - 1})",
            where=fspath(path),
            fix="--classes with a dataset.yaml whose `remap` or `ignore` names these values",
        )
    return found


_Named = dict[int, tuple[str, tuple[int, int, int] | None]]


def _from_table(band: ElementTree.Element) -> _Named:
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return {}
    usage = [_text(field.find("Usage")) for field in table.iter("FieldDefn")]
    place = {code: index for index, code in enumerate(usage)}
    value = place.get(_VALUE, place.get(_MIN))
    if value is None or _NAME not in place:
        return {}
    colored = {_RED, _GREEN, _BLUE} <= place.keys()
    found: _Named = {}
    for row in table.iter("Row"):
        cells = [_text(cell) for cell in row.iter("F")]
        if not cells[place[_NAME]]:
            continue
        red, green, blue = (place.get(code, 0) for code in (_RED, _GREEN, _BLUE))
        color = (int(cells[red]), int(cells[green]), int(cells[blue])) if colored else None
        found[int(float(cells[value]))] = (cells[place[_NAME]], color)
    return found


def _from_categories(band: ElementTree.Element) -> _Named:
    names = [_text(one) for one in band.iterfind("CategoryNames/Category")]
    return {value: (name, None) for value, name in enumerate(names) if name}


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None or element.text is None else element.text.strip()
