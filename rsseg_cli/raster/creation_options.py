"""GDAL's creation options for the files of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from rsseg_cli.errors import RssegError
from rsseg_cli.raster.gdal_errors import first_line, gdal_warnings

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
    """Check creation options by writing one block, since GDAL only logs invalid ones.

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
            f"{driver} does not accept these creation options ({messages[0]})",
            where="--co " + " --co ".join(f"{key}={value}" for key, value in options.items()),
            fix=f"https://gdal.org/drivers/raster/{driver.lower()}.html lists them",
        )
