"""Opens a scene and reads windows of it, with a mask of valid pixels."""

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
    """A georeferenced image in a file: one handle, for one thread.

    Use `Scene.open`. The attributes describe what `read` returns; file bands count from 1.

    Attributes:
        path: What was opened, as the user wrote it.
        width: Columns of the scene (of its valid box where one was given).
        height: Rows of the scene.
        bands: File bands in the order they are read.
        dtype: Stored type of the samples.
        crs: Coordinate reference system, None when the file has none.
        transform: Affine from pixel corners to the CRS; equals the file's unless a box moved it.
        nodata: Value that stands for a missing sample, None when there is none.
        descriptions: What the file calls its bands.
        block: (height, width) of the blocks that the file stores.
        corner: (x, y) of the scene's first pixel in the file; (0, 0) without a box.
        control: Ground control points, where the file has these instead of a transform.
        acquired: When the image was taken, None when the file does not tell.
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
    corner: tuple[int, int]
    control: ControlPoints | None
    acquired: datetime | None
    _file: rasterio.DatasetReader
    _nodata: tuple[float | None, ...]
    _fill: NDArray[Any] | None
    _mask: int | None
    """File band that is the mask, 0 for the mask of the dataset, None when there is none."""
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
            path: A file, or anything else GDAL opens (`/vsi...`, `https://...`).
            bands: File bands from 1 in the wanted order; all but an alpha band when None.
            nodata: Value of missing samples, in place of the file's own.
            box: (x0, y0, x1, y1) in pixels: the scene is only this part of the file.
            raw: Read a TIFF's samples as stored. Found out by itself for CMYK-tagged files.
            fill: Value per read band that takes the place of missing samples; 0 when None.
            warn: Warn about a missing CRS and about a band wrongly tagged as alpha.

        Raises:
            UnreadableError: The file is missing, empty, truncated or no raster.
            RssegError: It has no such band, or the box does not fit.
        """
        name = fspath(path)
        file = open_file(name, raw)
        try:
            # Some of the header is read late, and may be broken.
            with readable(name):
                return cls._of(
                    file, name, bands=bands, nodata=nodata, box=box, fill=fill, warn=warn
                )
        except BaseException:
            file.close()
            raise

    @classmethod
    def _of(
        cls,
        file: rasterio.DatasetReader,
        name: str,
        *,
        bands: Sequence[int] | None,
        nodata: float | None,
        box: tuple[int, int, int, int] | None,
        fill: Sequence[float] | None,
        warn: bool,
    ) -> Scene:
        chosen, mask = choose_bands(file, name, bands, warn=warn)
        x0, y0, x1, y1 = box or (0, 0, file.width, file.height)
        if not (0 <= x0 < x1 <= file.width and 0 <= y0 < y1 <= file.height):
            raise RssegError(
                f"the box {box} does not fit into {file.width} x {file.height} pixels",
                where=name,
                fix="x0 y0 x1 y1 inside the file",
            )
        dtype = common_dtype(file, chosen, name)
        own = [file.nodatavals[band - 1] for band in chosen]
        values = tuple(_storable(nodata if nodata is not None else v, dtype) for v in own)
        values_fill = None if fill is None else _cast(fill, dtype, len(chosen))
        if warn:
            _warn_of_place(file, name)
        return cls(
            path=name,
            width=x1 - x0,
            height=y1 - y0,
            bands=chosen,
            dtype=dtype.name,
            crs=file.crs,
            transform=_moved(file.transform, x0, y0),
            nodata=next((v for v in values if v is not None), None),
            descriptions=tuple(file.descriptions[band - 1] for band in chosen),
            block=file.block_shapes[chosen[0] - 1],
            corner=(x0, y0),
            control=_control(file, x0, y0),
            acquired=_acquired(file),
            _file=file,
            _nodata=values,
            _fill=values_fill,
            _mask=mask,
        )

    @property
    def count(self) -> int:
        """Number of bands C that are read."""
        return len(self.bands)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reopen(self) -> Scene:
        """Open the same scene in the same way once more, for another thread."""
        with readable(self.path):
            return replace(self, _file=rasterio.open(self._file.name))

    def shrunk(self, side: int) -> Scene:
        """Return the scene with its longer side at most `side` pixels, on the same file handle.

        Windows of it are read by nearest neighbour, from overviews where the file has some.
        """
        factor = max(1.0, max(self.width, self.height) / side)
        width, height = (max(1, round(pixels / factor)) for pixels in (self.width, self.height))
        scale = (self.width / width, self.height / height)
        return replace(
            self,
            width=width,
            height=height,
            transform=self.transform @ rasterio.Affine.scale(*scale),
            control=None,
            _scale=scale,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may hang over the border of the scene.

        Returns:
            Samples (C, h, w) in the stored type, missing ones replaced by `fill`, and (h, w) True
            where the pixel is valid. It is not outside the scene, where every band is nodata or
            not finite, and where a mask or an alpha band is 0.

        Raises:
            UnreadableError: The file ends or breaks inside the window.
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
            there = (
                slice(inside.y - window.y, inside.bottom - window.y),
                slice(inside.x - window.x, inside.right - window.x),
            )
            samples[:, *there], valid[there] = self._read(inside)
        return samples, valid

    def _read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        (across, down), (x, y) = self._scale, self.corner
        place = FileWindow(
            window.x * across + x, window.y * down + y, window.width * across, window.height * down
        )
        shape = (window.height, window.width)
        with readable(self.path):
            samples: NDArray[Any] = self._file.read(
                list(self.bands), window=place, out_shape=(self.count, *shape)
            )
            mask = None
            if self._mask == 0:
                mask = self._file.read_masks(1, window=place, out_shape=shape)
            elif self._mask is not None:
                mask = self._file.read(self._mask, window=place, out_shape=shape)
        valid = self._valid(samples)
        if mask is not None:
            valid &= mask != 0
        return samples, valid

    def _valid(self, samples: NDArray[Any]) -> NDArray[np.bool_]:
        """Find the pixels (h, w) with at least one sample; fill the samples that are missing."""
        floating = samples.dtype.kind == "f"
        if not floating and None in self._nodata:
            return np.ones(samples.shape[1:], np.bool_)
        valid = np.zeros(samples.shape[1:], np.bool_)
        for band, (plane, nodata) in enumerate(zip(samples, self._nodata, strict=True)):
            missing = ~np.isfinite(plane) if floating else np.zeros(plane.shape, np.bool_)
            if nodata is not None:
                missing |= plane == nodata
            valid |= ~missing
            # In unsigned types a 0 is often both nodata and a measured value: where other bands
            # hold something it stays what it is.
            if samples.dtype.kind in "if" and missing.any():
                plane[missing] = 0 if self._fill is None else self._fill[band]
        if samples.dtype.kind == "u" and not valid.all():
            gone = 0 if self._fill is None else self._fill[:, None]
            samples[:, ~valid] = gone
        return valid


def _control(file: rasterio.DatasetReader, x: int, y: int) -> ControlPoints | None:
    """Find the ground control points of a file, counted from pixel (x, y)."""
    points, crs = file.gcps
    if not points:
        return None
    placed = [(p.col - x, p.row - y, float(p.x), float(p.y), float(p.z or 0)) for p in points]
    return ControlPoints(crs, tuple(placed))


def _acquired(file: rasterio.DatasetReader) -> datetime | None:
    """Read when an image was taken, in UTC: from GDAL's IMAGERY metadata, else the TIFF tag."""
    known = (
        (file.tags(ns="IMAGERY").get("ACQUISITIONDATETIME", ""), "%Y-%m-%d %H:%M:%S"),
        (file.tags().get("TIFFTAG_DATETIME", ""), "%Y:%m:%d %H:%M:%S"),
    )
    for text, form in known:
        try:
            return datetime.strptime(text.strip(), form).replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


def _moved(transform: rasterio.Affine, x: int, y: int) -> rasterio.Affine:
    """Return a transform with its origin at pixel (x, y); bit-equal for (0, 0)."""
    a, b, c, d, e, f = transform[:6]
    return rasterio.Affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f)


def _storable(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Drop a nodata value that the type cannot hold, such as -9999 in uint8, or that is NaN."""
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


def _warn_of_place(file: rasterio.DatasetReader, name: str) -> None:
    """Warn about a scene without a CRS."""
    if file.crs is not None:
        return
    points, _ = file.gcps
    kind = "ground control points only" if points or file.rpcs else "no coordinate reference system"
    warnings.warn(f"{name} has {kind}: its map keeps pixel order", RssegWarning, stacklevel=4)
