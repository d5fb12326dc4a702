"""Converts the patches of a class map to polygons, strip by strip and without seams.

Patches that reach the lower edge of a strip stay open: their pieces wait for those of the next
strips. A patch becomes one polygon when nothing can touch it any more. So memory depends on the
strip and on the patches that are open, and the file is filled as the map is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.windows import Window as FileWindow
from shapely.geometry.base import BaseGeometry

from rsseg_cli.atomic_write import write_errors
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.connected_components import Numbers, label_patches, sieve_patches
from rsseg_cli.raster.creation_options import BLOCK
from rsseg_cli.raster.pixel_size import ellipsoid_areas_m2, pixel_area_m2

STRIP_PIXELS = 2**23
"""About how many pixels are read at a time."""
BATCH = 20_000
"""Polygons that are written at a time."""
LAYER = "classes"
"""Name of the layer."""


@dataclass
class Patch:
    """A patch, whole or as far as it is known.

    Attributes:
        value: Its class id.
        pixels: Number of its pixels.
        sure: Sum of the confidence of its pixels, 0 to 1 each.
        pieces: Its polygons in pixels of the map, one or more per strip.
    """

    value: int
    pixels: int = 0
    sure: float = 0.0
    pieces: list[BaseGeometry] = field(default_factory=list)

    def absorb(self, other: Patch) -> None:
        """Add a patch that turned out to be part of this one."""
        self.pixels, self.sure = self.pixels + other.pixels, self.sure + other.sure
        self.pieces += other.pieces

    def whole(self) -> BaseGeometry:
        """Return the union of the pieces."""
        return self.pieces[0] if len(self.pieces) == 1 else shapely.unary_union(self.pieces)


def draw_polygons(
    source: Path,
    target: Path,
    classes: Sequence[Class],
    *,
    confidence: Path | None = None,
    sieve: int = 0,
    simplify: float = 0.0,
) -> int:
    """Write the patches of a class map as polygons into a GeoPackage, atomically.

    The layer `classes` has class_id, class_name, area_m2 (map units squared without a CRS in
    known units), pixels, and mean_conf where the confidence is known.

    Args:
        source: The class map.
        target: The GeoPackage; replaced if it is there.
        classes: What its numbers mean.
        confidence: A map of how sure the model is, on the same grid.
        sieve: Patches of fewer pixels join a neighbour; see `patches.sieve_patches`.
        simplify: Outlines may move by so much, in units of the map's CRS. Neighbours move apart.

    Returns:
        The number of polygons.

    Raises:
        RssegError: The file cannot be written.
    """
    refuse_other_formats(target)
    draft = target.with_name(f".{target.name}.tmp.gpkg")
    with rasterio.open(source) as file:
        drawing = _Drawing(draft, classes, _Grid.of(file), simplify, confidence is not None)
    try:
        for patch in patches_of(source, confidence, sieve=sieve):
            drawing.add(patch)
        drawing.finish()
        draft.replace(target)
    finally:
        for left in target.parent.glob(f"{draft.name}*"):
            left.unlink()
    return drawing.count


def refuse_other_formats(target: Path) -> None:
    """Check that a vector file is a GeoPackage.

    Raises:
        RssegError: It has another suffix.
    """
    if target.suffix.lower() != ".gpkg":
        raise RssegError(
            f"polygons cannot be written as {target.suffix or 'a file without suffix'}",
            where=str(target),
            fix="a name that ends with .gpkg",
        )


def patches_of(source: Path, confidence: Path | None = None, *, sieve: int = 0) -> Iterator[Patch]:
    """Yield the patches of a class map from top to bottom, without those of nodata."""
    with rasterio.open(source) as file:
        sure = None if confidence is None else rasterio.open(confidence)
        try:
            open_patches: dict[int, Patch] = {}
            above: tuple[NDArray[np.uint8], Numbers] | None = None
            rows = max(BLOCK, STRIP_PIXELS // file.width // BLOCK * BLOCK)
            for top in range(0, file.height, rows):
                bottom = min(file.height, top + rows)
                values = _read(file, top, bottom, sieve)
                numbers, count = label_patches(values)
                found = _measure(values, numbers, count, sure, top)
                _add_pieces(found, values, numbers, top)
                if above is not None:
                    found = _join(open_patches, above, found, (values[0], numbers[0]))
                last = set() if bottom == file.height else set(np.unique(numbers[-1]).tolist())
                waiting = {id(found[n]) for n in last}
                done = {id(patch): patch for patch in found.values() if id(patch) not in waiting}
                yield from (patch for patch in done.values() if patch.value != IGNORE)
                open_patches = {n: found[n] for n in last}
                above = (values[-1], numbers[-1])
        finally:
            if sure is not None:
                sure.close()


def _read(file: Any, top: int, bottom: int, sieve: int) -> NDArray[np.uint8]:
    """Read rows, sieved as if the whole map had been: with as many more as a patch can reach."""
    # A large patch next to a small one needs `sieve` pixels of its own to be known as large.
    halo = 2 * sieve
    first, last = max(0, top - halo), min(file.height, bottom + halo)
    values: NDArray[np.uint8] = file.read(1, window=FileWindow(0, first, file.width, last - first))
    if sieve > 1:
        values = sieve_patches(values, sieve)
    return values[top - first : bottom - first]


def _measure(
    values: NDArray[np.uint8], numbers: Numbers, count: int, sure: Any, top: int
) -> dict[int, Patch]:
    """Return the patches of a strip, without their outlines."""
    flat = numbers.ravel()
    of_patch = np.zeros(count, np.uint8)
    of_patch[numbers] = values
    pixels = np.bincount(flat, minlength=count)
    sums: NDArray[Any] = np.zeros(count)
    if sure is not None:
        high, wide = values.shape
        shares = sure.read(1, window=FileWindow(0, top, wide, high)) * sure.scales[0]
        sums = np.bincount(flat, shares.ravel(), minlength=count)
    listed = zip(of_patch.tolist(), pixels.tolist(), sums.tolist(), strict=True)
    return {number: Patch(*known) for number, known in enumerate(listed)}


def _add_pieces(
    found: dict[int, Patch], values: NDArray[np.uint8], numbers: Numbers, top: int
) -> None:
    """Add the outlines of a strip's patches, in pixels of the map."""
    place = rasterio.Affine.translation(0, top)
    drawn = [
        (shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]), int(number))
        for shape, number in shapes(numbers, values != IGNORE, connectivity=4, transform=place)
    ]
    if not drawn:
        return
    outlines = np.array([outline for outline, _ in drawn])
    broken = ~shapely.is_valid(outlines)
    outlines[broken] = shapely.make_valid(outlines[broken], method="structure")
    for outline, (_, number) in zip(outlines, drawn, strict=True):
        found[number].pieces.append(outline)


def _join(
    open_patches: dict[int, Patch],
    above: tuple[NDArray[np.uint8], Numbers],
    found: dict[int, Patch],
    below: tuple[NDArray[np.uint8], Numbers],
) -> dict[int, Patch]:
    """Join the patches of a strip with the open ones that they touch.

    Returns:
        The patches by the numbers of this strip, several numbers for those that an earlier strip
        links; open patches that end here get numbers of their own.
    """
    same = above[0] == below[0]
    pairs = np.unique(np.stack([above[1][same], below[1][same]]), axis=1).T.tolist()
    patches = {("above", n): patch for n, patch in open_patches.items()}
    patches |= {("below", n): patch for n, patch in found.items()}
    parent: dict[int, Patch] = {}

    def root(patch: Patch) -> Patch:
        while id(patch) in parent:
            patch = parent[id(patch)]
        return patch

    for upper, lower in pairs:
        one, other = root(patches["above", upper]), root(patches["below", lower])
        if one is not other:
            # The longer list grows: a river of a thousand strips is not copied a thousand times.
            large, little = (one, other) if len(one.pieces) >= len(other.pieces) else (other, one)
            large.absorb(little)
            parent[id(little)] = large
    joined = {n: root(patch) for n, patch in found.items()}
    ended = (root(patch) for patch in open_patches.values())
    return joined | {-1 - n: patch for n, patch in enumerate(ended)}


@dataclass(frozen=True)
class _Grid:
    """The grid of a map.

    Attributes:
        crs: Its CRS as text, None when unknown.
        transform: Pixel corners to the CRS.
        pixel_area: Area of a pixel: in square metres where the unit of the CRS is known, in units
            of the transform where it is not, and None for pixels in degrees.
    """

    crs: str | None
    transform: rasterio.Affine
    pixel_area: float | None

    @classmethod
    def of(cls, file: Any) -> _Grid:
        area = pixel_area_m2(file.crs, file.transform)
        if area is None and not (file.crs and file.crs.is_geographic):
            area = abs(file.transform.determinant)
        return cls(file.crs.to_wkt() if file.crs else None, file.transform, area)

    def to_ground(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Transform points (N, 2) from pixels to the CRS."""
        a, b, c, d, e, f = self.transform[:6]
        x, y = pixels.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1)

    def areas(self, patches: Sequence[Patch], outlines: NDArray[Any]) -> list[float]:
        """Return the areas of patches in square metres; on the ellipsoid for a map in degrees."""
        if self.pixel_area is not None:
            return [patch.pixels * self.pixel_area for patch in patches]
        assert self.crs is not None  # it is in degrees
        return ellipsoid_areas_m2(outlines, self.crs)


@dataclass
class _Drawing:
    """A layer that is written batch by batch.

    Attributes:
        draft: The file, not there yet.
        classes: What the numbers of patches mean.
        grid: The grid of the map.
        simplify: By how much outlines may move.
        sure: Whether the confidence of patches is known.
        count: Number of polygons so far.
    """

    draft: Path
    classes: Sequence[Class]
    grid: _Grid
    simplify: float
    sure: bool
    count: int = 0

    def __post_init__(self) -> None:
        self._names = {cls.id: cls.name for cls in self.classes}
        self._batch: list[Patch] = []

    def add(self, patch: Patch) -> None:
        """Add a complete patch."""
        self._batch.append(patch)
        if len(self._batch) == BATCH:
            self._write()

    def finish(self) -> None:
        """Write what is left; a map without patches has an empty layer."""
        if self._batch or not self.count:
            self._write()

    def _write(self) -> None:
        import geopandas  # a second of import that maps without polygons do not need

        columns, outlines = self._columns()
        table = geopandas.GeoDataFrame(columns, geometry=outlines, crs=self.grid.crs)
        mode = "a" if self.count else "w"
        with write_errors("the polygons", self.draft.parent, kinds=(OSError, RuntimeError)):
            table.to_file(self.draft, layer=LAYER, driver="GPKG", mode=mode, engine="pyogrio")
        self.count += len(self._batch)
        self._batch = []

    def _columns(self) -> tuple[dict[str, Any], NDArray[Any]]:
        """Return the columns and outlines of a batch; collinear vertices are removed."""
        patches = self._batch
        outlines = shapely.simplify(np.array([patch.whole() for patch in patches], object), 0)
        outlines = shapely.transform(outlines, self.grid.to_ground)
        areas = self.grid.areas(patches, outlines)
        if self.simplify > 0:
            simpler = shapely.simplify(outlines, self.simplify)
            usable = shapely.is_valid(simpler) & ~shapely.is_empty(simpler)
            outlines = np.where(usable, simpler, outlines)
        columns: dict[str, Any] = {
            "class_id": np.array([patch.value for patch in patches], np.int32),
            "class_name": [self._names.get(patch.value, "") for patch in patches],
            "area_m2": np.array(areas, np.float64),
            "pixels": np.array([patch.pixels for patch in patches], np.int64),
        }
        if self.sure:
            columns["mean_conf"] = np.array([one.sure / one.pixels for one in patches], np.float64)
        return columns, outlines
