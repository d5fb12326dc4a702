"""An image with its label, and the open files to read both from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.spec.class_map import Merge
from rsseg_cli.data.spec.dataset_spec import Reader
from rsseg_cli.raster.align import AlignedLabels
from rsseg_cli.raster.decode import LabelCode, Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import LabelReader, is_vector
from rsseg_cli.raster.scene import Scene


@dataclass(frozen=True)
class SceneInfo:
    """Size, data type and georeference of a scene that is not open."""

    path: str
    width: int
    height: int
    dtype: str
    bands: int
    """Number of bands in the file, read or not."""
    crs: rasterio.CRS | None
    transform: rasterio.Affine
    block: tuple[int, int]

    @property
    def window(self) -> Window:
        """The whole scene."""
        return Window(0, 0, self.width, self.height)


@dataclass(frozen=True)
class Pair:
    """An image and its label, or those windows of them that a split may use."""

    name: str
    """Name of the scene, unique in its source."""
    image: Path
    label: Path | None
    domain: str | None
    regions: tuple[Window, ...] | None
    """Usable pixels as disjoint windows; None for the whole scene."""
    info: SceneInfo

    @property
    def windows(self) -> tuple[Window, ...]:
        """Usable pixels as disjoint windows."""
        return (self.info.window,) if self.regions is None else self.regions

    @property
    def area(self) -> int:
        """Number of usable pixels."""
        return sum(window.width * window.height for window in self.windows)

    def tiles(self, side: int) -> Iterator[Window]:
        """Yield tiles of at most `side` x `side` pixels that cover each usable window."""
        for region in self.windows:
            for tile in blocks(region.width, region.height, (side, side)):
                yield tile.shift(region.x, region.y)


@dataclass(frozen=True)
class Opener:
    """Opens the files of one source."""

    bands: tuple[int, ...]
    """Band numbers in the file (from 1), in channel order."""
    reader: Reader
    code: LabelCode
    merge: Merge | None = None
    """Class map that is applied to the labels."""
    align: bool = False
    """Resample raster labels to the image's grid, nearest neighbour."""

    @property
    def classes(self) -> tuple[Class, ...]:
        """Classes of the labels, after merging."""
        return self.code.classes if self.merge is None else self.merge.classes

    def scene(self, path: Path, *, fill: Sequence[float] | None = None) -> Scene:
        """Open an image; missing samples are replaced by `fill` (C)."""
        nodata = self.reader.nodata
        return Scene.open(
            path,
            bands=self.bands,
            nodata=float("nan") if nodata == "none" else nodata,
            box=self.reader.box,
            raw=self.reader.raw,
            fill=fill,
            warn=False,
        )

    def info(self, path: Path) -> SceneInfo:
        """Read size, type and georeference of an image."""
        with self.scene(path) as scene:
            crs = rasterio.CRS.from_user_input(self.reader.crs) if self.reader.crs else scene.crs
            return SceneInfo(
                path=scene.path,
                width=scene.width,
                height=scene.height,
                dtype=scene.dtype,
                bands=_count_bands(path, len(self.bands)),
                crs=crs,
                transform=scene.transform,
                block=scene.block,
            )

    def labels(self, pair: Pair) -> LabelReader | None:
        """Open the label of a pair; None if it has none."""
        if pair.label is None:
            return None
        table = None if self.merge is None else self.merge.table
        if self.align and not is_vector(pair.label):
            aligned = AlignedLabels.open(pair.label, self.code, pair.info)
            return LabelReader(aligned, pair.info, table)
        return LabelReader.open(pair.label, self.code, pair.info, box=self.reader.box, table=table)


def _count_bands(path: Path, expected: int) -> int:
    """Count the bands of a file without an additional alpha band."""
    with rasterio.open(path) as file:
        count: int = file.count
        alpha = count == expected + 1 and file.colorinterp[-1] == ColorInterp.alpha
    return expected if alpha else count


SourcePairs: TypeAlias = tuple[Opener, Sequence[Pair]]
"""Pairs of one source with their opener."""


@dataclass
class Handles:
    """Open files of one thread: an LRU cache of `limit` pairs."""

    limit: int = 32
    _open: OrderedDict[tuple[Path, Path | None], tuple[Scene, LabelReader | None]] = field(
        default_factory=OrderedDict, repr=False
    )

    def read(
        self, opener: Opener, pair: Pair, window: Window, *, fill: Sequence[float]
    ) -> tuple[NDArray[Any], Labels, NDArray[np.bool_]]:
        """Read samples (C, h, w), labels (h, w) and the mask of valid pixels (h, w) of a window.

        Labels are `IGNORE` at invalid pixels.
        """
        scene, reader = self._get(opener, pair, fill)
        samples, valid = scene.read(window)
        if reader is None:
            labels = np.full(valid.shape, IGNORE, np.uint8)
        else:
            labels = reader.read(window)
            labels[~valid] = IGNORE
        return samples, labels, valid

    def _get(
        self, opener: Opener, pair: Pair, fill: Sequence[float]
    ) -> tuple[Scene, LabelReader | None]:
        key = (pair.image, pair.label)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        while len(self._open) >= self.limit:
            _close(self._open.popitem(last=False)[1])
        self._open[key] = (opener.scene(pair.image, fill=fill), opener.labels(pair))
        return self._open[key]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            _close(self._open.popitem()[1])


def _close(handles: tuple[Scene, LabelReader | None]) -> None:
    for handle in handles:
        if handle is not None:
            handle.close()
