"""Scenes: georeferenced images, read by window with a mask of valid pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from os import PathLike, fspath
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as FileWindow

from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.map_style import ControlPoints
from rsseg_cli.raster.open_raster import choose_bands, common_dtype, open_file, readable


@dataclass
class Scene:
    """A georeferenced image in a file; one handle, for use in one thread.

    Use `Scene.open`. The attributes describe the output of `read`; file bands count from 1.

    Attributes:
        path: Path or URL as passed to `open`.
        width: Number of columns (of the box, if any).
        height: Number of rows (of the box, if any).
        bands: File bands in reading order.
        dtype: Stored type of the samples.
        crs: Coordinate reference system, if any.
        transform: Affine from pixel corners to the CRS; equals that of the file without a box.
        nodata: Value of missing samples, if any.
        descriptions: Names of the bands in the file.
        block: (height, width) of the blocks of the file.
        file_offset: (x, y) of the first pixel of the scene in the file; (0, 0) without a box.
        gcps: Ground control points, if the file has these instead of a transform.
        acquired: Acquisition time, if the file has it.
    """

    path: str
    width: int
    height: int
    bands: tuple[int, ...]
    dtype: str
    crs: rasterio.CRS | None
    transform: rasterio.Affine
    nodata: float | None
    descriptions: tuple[str | None, ...]
    block: tuple[int, int]
    file_offset: tuple[int, int]
    gcps: ControlPoints | None
    acquired: datetime | None
    _file: rasterio.DatasetReader
    _nodata: tuple[float | None, ...]
    _fill: NDArray[Any] | None
    _mask: int | None
    """File band of the mask; 0: the mask of the dataset; None: no mask."""
    _scale: tuple[float, float] = (1.0, 1.0)
    """Pixels of the file per pixel of the scene, along columns and rows."""

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
        box: tuple[int, int, int, int] | None = None,
        raw: bool = False,
        fill: Sequence[float] | None = None,
        warn: bool = True,
    ) -> Scene:
        """Open a scene for reading.

        Args:
            path: A file, or anything else that GDAL opens (`/vsi...`, `https://...`).
            bands: File bands from 1 in reading order; None: all but an alpha band.
            nodata: Value of missing samples instead of that of the file.
            box: (x0, y0, x1, y1) in pixels: the part of the file that is the scene.
            raw: Read the samples of a TIFF as stored; always so for CMYK-tagged files.
            fill: Value per read band that replaces missing samples; None: 0.
            warn: Warn about a missing CRS and about a band wrongly tagged as alpha.

        Raises:
            UnreadableError: The file is missing, empty, truncated or not a raster.
            RssegError: The file does not have such a band, or does not contain the box.
        """
        name = fspath(path)
        file = open_file(name, raw)
        try:
            # Parts of the header are read only now, and may be broken.
            with readable(name):
                return cls._from_file(file, name, bands, nodata, box, fill, warn)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _from_file(
        cls,
        file: rasterio.DatasetReader,
        name: str,
        bands: Sequence[int] | None,
        nodata: float | None,
        box: tuple[int, int, int, int] | None,
        fill: Sequence[float] | None,
        warn: bool,
    ) -> Scene:
        bands, mask = choose_bands(file, name, bands, warn=warn)
        x0, y0, x1, y1 = box or (0, 0, file.width, file.height)
        if not (0 <= x0 < x1 <= file.width and 0 <= y0 < y1 <= file.height):
            raise RssegError(
                f"the box {box} does not fit into {file.width} x {file.height} pixels",
                where=name,
                fix="x0 y0 x1 y1 inside the file",
            )
        dtype = common_dtype(file, bands, name)
        of_bands = [file.nodatavals[band - 1] if nodata is None else nodata for band in bands]
        values = tuple(_representable(value, dtype) for value in of_bands)
        if warn and file.crs is None:
            _warn_without_crs(file, name)
        return cls(
            path=name,
            width=x1 - x0,
            height=y1 - y0,
            bands=bands,
            dtype=dtype.name,
            crs=file.crs,
            transform=_shifted(file.transform, x0, y0),
            nodata=next((value for value in values if value is not None), None),
            descriptions=tuple(file.descriptions[band - 1] for band in bands),
            block=file.block_shapes[bands[0] - 1],
            file_offset=(x0, y0),
            gcps=_gcps(file, x0, y0),
            acquired=_acquisition_time(file),
            _file=file,
            _nodata=values,
            _fill=None if fill is None else _cast(fill, dtype, len(bands)),
            _mask=mask,
        )

    @property
    def count(self) -> int:
        """Number of bands C."""
        return len(self.bands)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reopen(self) -> Scene:
        """Open the same scene again, for another thread."""
        with readable(self.path):
            return replace(self, _file=rasterio.open(self._file.name))

    def downsampled(self, side: int) -> Scene:
        """Return the scene with its longer side at most `side` pixels, on the same file handle.

        It is read by nearest neighbour, from overviews if the file has any.
        """
        factor = max(1.0, max(self.width, self.height) / side)
        width, height = (max(1, round(pixels / factor)) for pixels in (self.width, self.height))
        scale = (self.width / width, self.height / height)
        return replace(
            self,
            width=width,
            height=height,
            transform=self.transform @ rasterio.Affine.scale(*scale),
            gcps=None,
            _scale=scale,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may extend beyond the scene.

        Returns:
            Samples (C, h, w) in the stored type, missing ones replaced by `fill`, and (h, w) True
            for valid pixels. A pixel is invalid outside the scene, where each band is nodata or
            not finite, and where a mask or an alpha band is 0.

        Raises:
            UnreadableError: The file is truncated or broken inside the window.
        """
        inside = window.intersect(Window(0, 0, self.width, self.height))
        if inside == window:
            return self._read(window)
        shape = (window.height, window.width)
        samples = np.zeros((self.count, *shape), self.dtype)
        if self._fill is not None:
            samples[:] = self._fill[:, None, None]
        valid = np.zeros(shape, np.bool_)
        if inside is not None:
            rows, columns = inside.slices_in(window)
            samples[:, rows, columns], valid[rows, columns] = self._read(inside)
        return samples, valid

    def _read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        (scale_x, scale_y), (x, y) = self._scale, self.file_offset
        box = FileWindow(
            window.x * scale_x + x,
            window.y * scale_y + y,
            window.width * scale_x,
            window.height * scale_y,
        )
        shape = (window.height, window.width)
        with readable(self.path):
            samples: NDArray[Any] = self._file.read(
                list(self.bands), window=box, out_shape=(self.count, *shape)
            )
            mask = None
            if self._mask == 0:
                mask = self._file.read_masks(1, window=box, out_shape=shape)
            elif self._mask is not None:
                mask = self._file.read(self._mask, window=box, out_shape=shape)
        valid = self._valid(samples)
        if mask is not None:
            valid &= mask != 0
        return samples, valid

    def _valid(self, samples: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the pixels (h, w) with at least one sample, and fill the missing samples."""
        floating = samples.dtype.kind == "f"
        if not floating and None in self._nodata:
            return np.ones(samples.shape[1:], np.bool_)
        valid = np.zeros(samples.shape[1:], np.bool_)
        for band, (plane, nodata) in enumerate(zip(samples, self._nodata, strict=True)):
            missing = ~np.isfinite(plane) if floating else np.zeros(plane.shape, np.bool_)
            if nodata is not None:
                missing |= plane == nodata
            valid |= ~missing
            # In unsigned types 0 is often both nodata and a measured value: it is replaced only
            # where all bands are missing.
            if samples.dtype.kind in "if" and missing.any():
                plane[missing] = 0 if self._fill is None else self._fill[band]
        if samples.dtype.kind == "u" and not valid.all():
            samples[:, ~valid] = 0 if self._fill is None else self._fill[:, None]
        return valid


def _gcps(file: rasterio.DatasetReader, x: int, y: int) -> ControlPoints | None:
    """Return the ground control points of a file, relative to pixel (x, y)."""
    points, crs = file.gcps
    if not points:
        return None
    shifted = [(p.col - x, p.row - y, float(p.x), float(p.y), float(p.z or 0)) for p in points]
    return ControlPoints(crs, tuple(shifted))


def _acquisition_time(file: rasterio.DatasetReader) -> datetime | None:
    """Read the acquisition time (UTC) from GDAL's IMAGERY metadata, else from the TIFF tag."""
    for text, form in (
        (file.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", ""), "%Y-%m-%d %H:%M:%S"),
        (file.tags().get("TIFFTAG_DATETIME", ""), "%Y:%m:%d %H:%M:%S"),
    ):
        try:
            return datetime.strptime(text.strip(), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def _shifted(transform: rasterio.Affine, x: int, y: int) -> rasterio.Affine:
    """Return a transform with its origin at pixel (x, y); bit-equal for (0, 0)."""
    a, b, c, d, e, f = transform[:6]
    return rasterio.Affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f)


def _representable(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return a nodata value; None if it is NaN or outside the type, such as -9999 in uint8."""
    if nodata is None or np.isnan(nodata):
        return None
    if dtype.kind == "f":
        return float(dtype.type(nodata))
    limits = np.iinfo(dtype)
    return nodata if limits.min <= nodata <= limits.max and nodata == int(nodata) else None


def _cast(fill: Sequence[float], dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if len(fill) != count:
        raise ValueError(f"{len(fill)} fill values for {count} bands")
    values = np.asarray(fill, np.float64)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def _warn_without_crs(file: rasterio.DatasetReader, name: str) -> None:
    points, _ = file.gcps
    kind = "ground control points only" if points or file.rpcs else "no coordinate reference system"
    warnings.warn(f"{name} has {kind}: its map keeps pixel order", RssegWarning, stacklevel=4)
