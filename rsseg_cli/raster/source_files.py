"""Files that GDAL reads for a raster."""

from __future__ import annotations

import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning

from rsseg_cli.raster.gdal_errors import GDAL_ERRORS

SIDECARS = ("", ".ovr", ".msk", ".aux.xml")
"""Suffixes of a raster, its overviews, its mask and its metadata."""


def source_files(name: str) -> set[Path]:
    """Return the local files behind a raster, with links resolved.

    These are the file itself, the sources of a virtual raster at any depth, the archive that holds
    one of them, and their sidecars.
    """
    names: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        if name not in names:
            names.add(name)
            pending += _listed_files(name)
    paths = (_local_path(name + suffix) for name in names for suffix in SIDECARS)
    return {path.resolve() for path in paths if path.exists()}


def _listed_files(name: str) -> list[str]:
    """Return GDAL's file list of a raster; an empty list for other files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(name) as file:
                return list(file.files)
    except GDAL_ERRORS:
        return []


def _local_path(name: str) -> Path:
    """Return the path of a file; inside an archive (/vsizip/a.zip/b.tif) that of the archive."""
    if not name.startswith("/vsi"):
        return Path(name)
    path = Path(name.partition("/vsi")[2].partition("/")[2].replace("{", "").replace("}", ""))
    return next((parent for parent in (path, *path.parents) if parent.is_file()), path)
