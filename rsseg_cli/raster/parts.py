"""The parts of a map: what they are as GeoTIFFs, and how they are shown as one raster."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.gdal_errors import first_line, gdal_warnings
from rsseg_cli.raster.grid import Window

BLOCK = 512
"""Side of the blocks of a map; parts begin at multiples of it."""


@dataclass(frozen=True)
class ControlPoints:
    """Points of a scene whose place on the ground is known, for want of a transform.

    Attributes:
        crs: Coordinate reference system of the places, None when unknown.
        points: Column, row, x, y and z of each, the first two in pixels.
    """

    crs: rasterio.CRS | None
    points: tuple[tuple[float, float, float, float, float], ...]


@dataclass(frozen=True)
class MapGrid:
    """The grid of a map: that of its scene, bit for bit."""

    width: int
    height: int
    crs: rasterio.CRS | None
    transform: rasterio.Affine
    control: ControlPoints | None = None


@dataclass(frozen=True)
class Look:
    """What the numbers of a map mean.

    Attributes:
        bands: What each band is called.
        classes: Classes of a class map; empty for maps of quantities.
        scale: Quantity = stored value * scale; for maps of quantities.
        tags: How the map was made, kept in the file.
    """

    bands: tuple[str, ...]
    classes: tuple[Class, ...] = ()
    scale: float = 1.0
    tags: Mapping[str, str] = field(default_factory=dict)


def virtual_map(grid: MapGrid, look: Look, parts: Sequence[tuple[str, Window]]) -> str:
    """Write the virtual raster that shows parts as one map with all its metadata.

    Args:
        grid: The grid of the map.
        look: What it shows.
        parts: File name, beside the virtual raster, and place of each part.
    """
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        sidecars.child(root, "SRS", grid.crs.to_wkt(version="WKT2_2019"))
    if grid.transform != rasterio.Affine.identity():
        numbers = ", ".join(repr(float(number)) for number in grid.transform.to_gdal())
        sidecars.child(root, "GeoTransform", numbers)
    if grid.control is not None:
        _add_control(root, grid.control)
    metadata = sidecars.child(root, "Metadata")
    for key, value in look.tags.items():
        sidecars.child(metadata, "MDI", value, key=f"rsseg_{key}")
    for index, name in enumerate(look.bands, 1):
        band = sidecars.child(root, "VRTRasterBand", dataType="Byte", band=index)
        sidecars.child(band, "Description", name)
        sidecars.child(band, "NoDataValue", IGNORE)
        if look.classes:
            sidecars.child(band, "ColorInterp", "Palette")
            sidecars.add_color_table(band, look.classes)
        else:
            sidecars.child(band, "Offset", 0)
            sidecars.child(band, "Scale", repr(look.scale))
        for file, part in parts:
            _add_source(band, index, file, part)
    return ET.tostring(root, encoding="unicode")


def _add_control(root: ET.Element, control: ControlPoints) -> None:
    wkt = {} if control.crs is None else {"Projection": control.crs.to_wkt()}
    listed = sidecars.child(root, "GCPList", **wkt)
    for number, point in enumerate(control.points, 1):
        values = dict(zip(("Pixel", "Line", "X", "Y", "Z"), map(repr, point), strict=True))
        sidecars.child(listed, "GCP", Id=number, **values)


def _add_source(band: ET.Element, index: int, file: str, part: Window) -> None:
    source = sidecars.child(band, "SimpleSource")
    sidecars.child(source, "SourceFilename", file, relativeToVRT=1)
    sidecars.child(source, "SourceBand", index)
    # With its properties known a source is opened only when its pixels are asked for.
    sidecars.child(
        source, "SourceProperties", RasterXSize=part.width, RasterYSize=part.height,
        DataType="Byte", BlockXSize=BLOCK, BlockYSize=BLOCK,
    )  # fmt: skip
    size = {"xSize": part.width, "ySize": part.height}
    sidecars.child(source, "SrcRect", xOff=0, yOff=0, **size)
    sidecars.child(source, "DstRect", xOff=part.x, yOff=part.y, **size)


def require_whole(path: Path) -> None:
    """Make sure that each block of a TIFF lies inside the file.

    GDAL writes blocks late and may lose the error when the disk is full.

    Raises:
        OSError: A block is missing.
    """
    size = path.stat().st_size
    with rasterio.open(path) as file:
        high, wide = file.block_shapes[0]
        across, down = -(-file.width // wide), -(-file.height // high)
        blocks = [(x, y, band) for band in file.indexes for y in range(down) for x in range(across)]
        for x, y, band in blocks:
            start = file.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
            length = file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band)
            if start is None or length is None or int(start) + int(length) > size:
                raise OSError(f"block {x}, {y} did not reach the disk")


@cache
def compression(driver: str) -> dict[str, str]:
    """Choose ZSTD, or DEFLATE where this GDAL has none. Level 1: maps gain nothing from more."""
    try:
        with MemoryFile() as memory:
            memory.open(
                driver="GTiff", width=1, height=1, count=1, dtype="uint8", compress="zstd"
            ).close()
    except RasterioError:
        return {"COMPRESS": "DEFLATE"}
    return {"COMPRESS": "ZSTD", "LEVEL" if driver == "COG" else "ZSTD_LEVEL": "1"}


def refuse_options(driver: str, options: Mapping[str, str]) -> None:
    """Check creation options by writing one block: GDAL only logs those it does not apply.

    Raises:
        RssegError: An option or its value is unknown.
    """
    with gdal_warnings() as messages:
        try:
            with MemoryFile() as memory, MemoryFile() as copy:
                memory.open(
                    driver="GTiff", width=16, height=16, count=1, dtype="uint8",
                    photometric="palette",
                ).close()  # fmt: skip
                rasterio.shutil.copy(memory.name, copy.name, driver=driver, **options)
        except RasterioError as error:
            messages.append(first_line(error))
    if messages:
        raise RssegError(
            f"{driver} does not take these creation options ({messages[0]})",
            where="--co " + " --co ".join(f"{key}={value}" for key, value in options.items()),
            fix=f"https://gdal.org/drivers/raster/{driver.lower()}.html lists them",
        )
