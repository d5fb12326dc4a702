"""Parts of a map: the virtual raster that joins them, and a check that they are complete."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import rasterio
import rasterio.shutil

from rsseg_cli.classes import IGNORE
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.creation_options import BLOCK
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.map_style import ControlPoints, MapGrid, MapStyle


def build_vrt(grid: MapGrid, style: MapStyle, parts: Sequence[tuple[str, Window]]) -> str:
    """Return the XML of a virtual raster that joins parts into a map with all its metadata.

    Args:
        grid: Grid of the map.
        style: Meaning of its values.
        parts: File name, in the folder of the virtual raster, and window of each part.
    """
    root = ET.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs is not None:
        sidecars.child(root, "SRS", grid.crs.to_wkt(version="WKT2_2019"))
    if grid.transform != rasterio.Affine.identity():
        numbers = ", ".join(repr(float(number)) for number in grid.transform.to_gdal())
        sidecars.child(root, "GeoTransform", numbers)
    if grid.gcps is not None:
        _add_gcps(root, grid.gcps)
    metadata = sidecars.child(root, "Metadata")
    for key, value in style.tags.items():
        sidecars.child(metadata, "MDI", value, key=f"rsseg_{key}")
    for index, name in enumerate(style.bands, 1):
        band = sidecars.child(root, "VRTRasterBand", dataType="Byte", band=index)
        sidecars.child(band, "Description", name)
        sidecars.child(band, "NoDataValue", IGNORE)
        if style.classes:
            sidecars.child(band, "ColorInterp", "Palette")
            sidecars.add_color_table(band, style.classes)
        else:
            sidecars.child(band, "Offset", 0)
            sidecars.child(band, "Scale", repr(style.scale))
        for file, part in parts:
            _add_source(band, index, file, part)
    return ET.tostring(root, encoding="unicode")


def _add_gcps(root: ET.Element, gcps: ControlPoints) -> None:
    wkt = {} if gcps.crs is None else {"Projection": gcps.crs.to_wkt()}
    listed = sidecars.child(root, "GCPList", **wkt)
    for number, point in enumerate(gcps.points, 1):
        values = dict(zip(("Pixel", "Line", "X", "Y", "Z"), map(repr, point), strict=True))
        sidecars.child(listed, "GCP", Id=number, **values)


def _add_source(band: ET.Element, index: int, file: str, part: Window) -> None:
    source = sidecars.child(band, "SimpleSource")
    sidecars.child(source, "SourceFilename", file, relativeToVRT=1)
    sidecars.child(source, "SourceBand", index)
    # With these properties GDAL opens a source only to read its pixels.
    sidecars.child(
        source, "SourceProperties", RasterXSize=part.width, RasterYSize=part.height,
        DataType="Byte", BlockXSize=BLOCK, BlockYSize=BLOCK,
    )  # fmt: skip
    size = {"xSize": part.width, "ySize": part.height}
    sidecars.child(source, "SrcRect", xOff=0, yOff=0, **size)
    sidecars.child(source, "DstRect", xOff=part.x, yOff=part.y, **size)


def require_all_blocks(path: Path) -> None:
    """Check that a TIFF contains all its blocks.

    GDAL writes blocks late and may lose the error of a full disk.

    Raises:
        OSError: A block is missing.
    """
    size = path.stat().st_size
    with rasterio.open(path) as file:
        height, width = file.block_shapes[0]
        columns, rows = range(-(-file.width // width)), range(-(-file.height // height))
        for band, y, x in product(file.indexes, rows, columns):
            start = file.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
            length = file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band)
            if start is None or length is None or int(start) + int(length) > size:
                raise OSError(f"block {x}, {y} was not written")
