"""Sidecars of a class map: names and colours for GDAL, QGIS and STAC."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import rasterio
from rasterio.warp import transform_geom

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.raster.gdal_errors import GDAL_ERRORS
from rsseg_cli.raster.map_style import MapGrid, MapStyle

INTEGER, TEXT = "0", "2"
COLUMNS = (
    ("value", INTEGER, "5"),
    ("class", TEXT, "2"),
    ("red", INTEGER, "6"),
    ("green", INTEGER, "7"),
    ("blue", INTEGER, "8"),
)
"""Columns of the attribute table of a class map: name, and GDAL's codes of type and usage."""

EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)

EARLIEST = "1900-01-01T00:00:00Z"
"""Start of the time range of a scene without a date."""


def child(parent: ET.Element, tag: str, text: object = None, **attributes: object) -> ET.Element:
    """Add an element to `parent` and return it."""
    element = ET.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    element.text = None if text is None else str(text)
    return element


def add_color_table(band: ET.Element, classes: Sequence[Class]) -> None:
    """Add a colour table to a band of a virtual raster; values without a class are transparent."""
    colors = {cls.id: cls.color for cls in classes}
    table = child(band, "ColorTable")
    for value in range(256):
        red, green, blue = colors.get(value, (0, 0, 0))
        child(table, "Entry", c1=red, c2=green, c3=blue, c4=255 if value in colors else 0)


def _add_names(band: ET.Element, classes: Sequence[Class]) -> None:
    """Add category names and a thematic attribute table to a band of a GDAL file."""
    names = {cls.id: cls.name for cls in classes}
    categories = child(band, "CategoryNames")
    for value in range(max(names) + 1):
        child(categories, "Category", names.get(value, ""))
    table = child(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, column in enumerate(COLUMNS):
        definition = child(table, "FieldDefn", index=index)
        for tag, text in zip(("Name", "Type", "Usage"), column, strict=True):
            child(definition, tag, text)
    for index, cls in enumerate(classes):
        row = child(table, "Row", index=index)
        for cell in (cls.id, cls.name, *cls.color):
            child(row, "F", cell)


def pam_sidecar(classes: Sequence[Class], existing: str | None = None) -> str:
    """Return the `.aux.xml` that GDAL reads beside a raster.

    Args:
        classes: The classes of band 1.
        existing: File that GDAL has written; its other elements are kept.
    """
    root = ET.fromstring(existing) if existing else ET.Element("PAMDataset")
    band = root.find("PAMRasterBand[@band='1']")
    if band is None:
        band = child(root, "PAMRasterBand", band=1)
    for name in ("CategoryNames", "GDALRasterAttributeTable"):
        for old in band.findall(name):
            band.remove(old)
    _add_names(band, classes)
    return ET.tostring(root, encoding="unicode")


def qgis_style(classes: Sequence[Class]) -> str:
    """Return the `.qml` style that QGIS applies by default to a raster of the same stem."""
    root = ET.Element("qgis", {"styleCategories": "Symbology"})
    renderer = child(
        child(root, "pipe"), "rasterrenderer", type="paletted", band=1, opacity=1, alphaBand=-1
    )
    palette = child(renderer, "colorPalette")
    for cls in classes:
        entry = {"value": cls.id, "label": cls.name, "color": cls.hex_color, "alpha": 255}
        child(palette, "paletteEntry", **entry)
    return "<!DOCTYPE qgis>\n" + ET.tostring(root, encoding="unicode")


def stac_item(name: str, grid: MapGrid, style: MapStyle) -> dict[str, Any]:
    """Return the STAC item of a class map, with projection, raster and classification.

    `datetime` is the acquisition time of the scene. If that is unknown it is null and, as STAC
    requires, replaced by a range from `EARLIEST` to the creation of the map.

    Args:
        name: File name of the map, in the folder of the item.
        grid: Grid of the map; without a CRS the item has no geometry.
        style: Classes and tags of the map; tags are stored with the prefix `rsseg:`.
    """
    width, height, crs, transform = grid.width, grid.height, grid.crs, grid.transform
    created = _rfc3339(datetime.now(UTC))
    time: dict[str, Any] = {"datetime": None, "start_datetime": EARLIEST, "end_datetime": created}
    if grid.acquired is not None:
        time = {"datetime": _rfc3339(grid.acquired)}
    properties: dict[str, Any] = {
        **time,
        "created": created,
        "proj:shape": [height, width],
        "proj:transform": list(transform[:6]),
        "processing:software": {"rsseg": style.tags.get("version", "")},
        **{f"rsseg:{key}": value for key, value in style.tags.items()},
    }
    geometry = None
    if crs is not None:
        geometry = _footprint(width, height, crs, transform)
        code = crs.to_epsg()
        properties |= {"proj:code": f"EPSG:{code}"} if code else {"proj:wkt2": crs.to_wkt()}
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": name.rsplit(".", 1)[0],
        "geometry": geometry,
        "properties": properties,
        "links": [],
        "assets": {
            "map": {
                "href": f"./{name}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "raster:bands": [{"data_type": "uint8", "nodata": IGNORE}],
                "classification:classes": _classification(style.classes),
            }
        },
    }
    if geometry is not None:
        xs, ys = zip(*geometry["coordinates"][0], strict=True)
        item["bbox"] = [min(xs), min(ys), max(xs), max(ys)]
    return item


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _footprint(
    width: int, height: int, crs: rasterio.CRS, transform: rasterio.Affine
) -> dict[str, Any] | None:
    """Return the outline of a map in degrees; None for a local CRS."""
    a, b, c, d, e, f = transform[:6]
    corners = [(0, 0), (width, 0), (width, height), (0, height), (0, 0)]
    ring = [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
    try:
        outline: dict[str, Any] = transform_geom(
            crs, "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}
        )
    except (*GDAL_ERRORS, SystemError):
        # rasterio raises SystemError if PROJ fails without a message.
        return None
    return outline


def _classification(classes: Sequence[Class]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = [
        {
            "value": cls.id,
            "name": re.sub(r"[^0-9A-Za-z_-]", "_", cls.name),
            "title": cls.name,
            "color_hint": "{:02X}{:02X}{:02X}".format(*cls.color),
        }
        for cls in classes
    ]
    return [*entries, {"value": IGNORE, "name": "nodata", "nodata": True}]
