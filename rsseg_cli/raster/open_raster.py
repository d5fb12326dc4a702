"""Opening of raster files, and the choice of image bands; errors name the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window as FileWindow

from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.gdal_errors import GDAL_ERRORS, first_line

RAW = "GTIFF_RAW:"
"""Prefix that makes GDAL return a TIFF's samples as stored, without converting CMYK to RGBA."""


def open_file(name: str, raw: bool) -> rasterio.DatasetReader:
    """Open a file; CMYK-tagged files as raw samples, since GDAL converts them to RGBA."""
    with readable(name):
        file = rasterio.open(RAW + name if raw else name)
        tagged = file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"
        if tagged and not raw:
            file.close()
            file = rasterio.open(RAW + name)
    if file.count == 0 or file.width == 0 or file.height == 0:
        file.close()
        raise UnreadableError(
            "the file holds no image", where=name, fix="the path of one of its subdatasets"
        )
    return file


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise GDAL's errors inside the block as an `UnreadableError` that names the file."""
    try:
        yield
    except GDAL_ERRORS as error:
        local = Path(name)
        if local.is_dir():
            what, fix = "this is a folder, not a raster", "a file inside it"
        elif "://" not in name and not name.startswith("/vsi") and not local.exists():
            what, fix = "there is no such file", "check the path"
        elif local.is_file() and local.stat().st_size == 0:
            what, fix = "the file is empty", "fetch or write it again"
        else:
            what = f"the raster cannot be read ({first_line(error)})"
            fix = "fetch the file again if it is incomplete; `gdalinfo` shows its format"
        raise UnreadableError(what, where=name, fix=fix) from error


def choose_bands(
    file: rasterio.DatasetReader, name: str, bands: Sequence[int] | None, *, warn: bool
) -> tuple[tuple[int, ...], int | None]:
    """Return the bands to read and the band of the mask (0: of the dataset, None: no mask)."""
    alpha = _alpha(file, name, warn=warn) if bands is None else None
    if bands is None:
        bands = [band for band in range(1, file.count + 1) if band != alpha]
    for band in bands:
        if not 1 <= band <= file.count:
            raise RssegError(f"there is no band {band}", where=name, fix=f"bands 1 to {file.count}")
    if not bands:
        raise RssegError("no band is left to read", where=name, fix="name the bands to read")
    if alpha is None and ColorInterp.alpha in file.colorinterp:
        tagged = file.colorinterp.index(ColorInterp.alpha) + 1
        alpha = tagged if tagged not in bands and _is_mask(file, tagged, name) else None
    if alpha is not None:
        return tuple(bands), alpha
    flags = file.mask_flag_enums[bands[0] - 1]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    return tuple(bands), 0 if has_mask else None


def _alpha(file: rasterio.DatasetReader, name: str, *, warn: bool) -> int | None:
    """Return the alpha band, if any; GDAL tags the fourth of four 8-bit bands as alpha, too."""
    if file.count < 2 or ColorInterp.alpha not in file.colorinterp:
        return None
    band: int = file.colorinterp.index(ColorInterp.alpha) + 1
    if _is_mask(file, band, name):
        return band
    if warn:
        warnings.warn(
            f"{name}: band {band} is tagged alpha but holds measured values, and is read as a band",
            RssegWarning,
            stacklevel=4,
        )
    return None


def _is_mask(file: rasterio.DatasetReader, band: int, name: str) -> bool:
    """Return whether five blocks of a band hold only 0 and its largest value."""
    height, width = file.block_shapes[band - 1]
    top = np.iinfo(file.dtypes[band - 1]).max if "int" in file.dtypes[band - 1] else 1
    for position in (0.5, 0.0, 0.25, 0.75, 1.0):
        x = int(position * (file.width - 1)) // width * width
        y = int(position * (file.height - 1)) // height * height
        window = FileWindow(
            x, y, min(width, file.width - x, 1024), min(height, file.height - y, 1024)
        )
        with readable(name):
            values = file.read(band, window=window)
        if not np.isin(values, (0, top)).all():
            return False
    return True


def common_dtype(file: rasterio.DatasetReader, bands: Sequence[int], name: str) -> np.dtype[Any]:
    """Return the type that holds the samples of all given bands."""
    dtypes = {file.dtypes[band - 1] for band in bands}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise UnreadableError(
            "complex samples are not supported",
            where=name,
            fix="write amplitude and phase as bands",
        )
    return np.result_type(*dtypes)
