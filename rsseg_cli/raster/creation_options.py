"""GDAL's creation options for the files of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from rsseg_cli.errors import RssegError
from rsseg_cli.raster.gdal_errors import GDAL_ERRORS, first_line, gdal_warnings

BLOCK = 512
"""Side of the blocks of a map in pixels; parts begin at multiples of it."""


@dataclass(frozen=True)
class CreationOptions:
    """Format of a map.

    Attributes:
        driver: `COG` or `GTiff` (tiled, without overviews).
        options: Creation options of the driver that replace the defaults.
    """

    driver: str = "COG"
    options: Mapping[str, str] = field(default_factory=dict)

    def to_gdal(self, *, classes: bool) -> dict[str, str]:
        """Return all creation options, for a map of classes or of quantities."""
        options = {"BIGTIFF": "IF_SAFER", **compression(self.driver)}
        if self.driver == "COG":
            # The mean of class ids is not a class.
            resampling = "NEAREST" if classes else "AVERAGE"
            options |= {"BLOCKSIZE": str(BLOCK), "OVERVIEW_RESAMPLING": resampling}
        else:
            options |= {"TILED": "YES", "BLOCKXSIZE": str(BLOCK), "BLOCKYSIZE": str(BLOCK)}
        return options | {key.upper(): value for key, value in self.options.items()}


@cache
def compression(driver: str) -> dict[str, str]:
    """Return the options for ZSTD, or for DEFLATE where GDAL was built without ZSTD.

    Level 1: higher levels do not make maps noticeably smaller.
    """
    try:
        with MemoryFile() as memory:
            memory.open(
                driver="GTiff", width=1, height=1, count=1, dtype="uint8", compress="zstd"
            ).close()
    except RasterioError:
        return {"COMPRESS": "DEFLATE"}
    return {"COMPRESS": "ZSTD", "LEVEL" if driver == "COG" else "ZSTD_LEVEL": "1"}


def check_creation_options(driver: str, options: Mapping[str, str]) -> None:
    """Check creation options by writing a small class map, since GDAL only logs invalid ones.

    Raises:
        RssegError: An option or its value is unknown, or class ids are not stored exactly.
    """
    where = "--co " + " --co ".join(f"{key}={value}" for key, value in options.items())
    ids = stored = _all_ids()
    with gdal_warnings() as messages:
        try:
            stored = _write_and_read(ids, driver, options)
        except GDAL_ERRORS as error:
            messages.append(first_line(error))
    if not np.array_equal(stored, ids):
        raise RssegError(
            "these creation options change class ids",
            where=where,
            fix="lossless compression, e.g. --co COMPRESS=DEFLATE, and 8 bits per pixel",
        )
    if messages:
        raise RssegError(
            f"{driver} does not accept these creation options ({messages[0]})",
            where=where,
            fix=f"https://gdal.org/drivers/raster/{driver.lower()}.html lists them",
        )


def _all_ids() -> NDArray[np.uint8]:
    """Return all values of uint8 as a smooth slope above noise: losses depend on the content."""
    values = np.arange(256)
    slope = values[:, None] + values
    noise = np.random.default_rng(0).integers(256, size=slope.shape)
    return np.concatenate((slope, noise)).astype(np.uint8)


def _write_and_read(
    ids: NDArray[np.uint8], driver: str, options: Mapping[str, str]
) -> NDArray[np.uint8]:
    """Return the values that a class map with these creation options holds."""
    height, width = ids.shape
    name = "map.tif"  # in messages of GDAL
    with MemoryFile(filename=name) as memory, MemoryFile(filename=name) as copy:
        with memory.open(
            driver="GTiff", width=width, height=height, count=1, dtype="uint8",
            photometric="palette",
        ) as file:  # fmt: skip
            file.write(ids, 1)
        rasterio.shutil.copy(memory.name, copy.name, driver=driver, **options)
        with rasterio.open(copy.name) as file:
            stored: NDArray[np.uint8] = file.read(1)
            return stored
