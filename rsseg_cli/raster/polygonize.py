"""Polygons of the patches of a class map, computed strip by strip without seams.

A patch that reaches the lower edge of a strip stays open until the next strips complete it; then it
becomes one polygon. Memory thus depends on the size of a strip and on the open patches, and
polygons are written while the map is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

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
from rsseg_cli.raster.connected_components import PatchNumbers, label_patches, sieve_patches
from rsseg_cli.raster.creation_options import BLOCK
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.pixel_size import PixelAreas

STRIP_PIXELS = 2**23
"""Approximate number of pixels read at a time."""
BATCH = 20_000
"""Number of polygons written at a time."""
MEASURED_PIXELS = 2**20
"""Approximate number of pixels whose areas are in memory at a time."""
LAYER = "classes"
"""Name of the layer."""


@dataclass
class Patch:
    """A connected component of one class, or the part of it that was read so far.

    Attributes:
        value: Class id.
        pixels: Number of pixels.
        confidence_sum: Sum of the confidence of the pixels, 0 to 1 each.
        area_m2: Area on the ellipsoid in square metres; 0 in a map without known areas.
        pieces: Polygons in pixels of the map, one or more per strip.
    """

    value: int
    pixels: int = 0
    confidence_sum: float = 0.0
    area_m2: float = 0.0
    pieces: list[BaseGeometry] = field(default_factory=list)

    def absorb(self, other: Patch) -> None:
        """Add another part of the same patch."""
        self.pixels += other.pixels
        self.confidence_sum += other.confidence_sum
        self.area_m2 += other.area_m2
        self.pieces += other.pieces

    def union(self) -> BaseGeometry:
        """Return the union of the pieces."""
        return self.pieces[0] if len(self.pieces) == 1 else shapely.unary_union(self.pieces)


def write_polygons(
    source: Path,
    target: Path,
    classes: Sequence[Class],
    *,
    confidence: Path | None = None,
    sieve: int = 0,
    simplify: float = 0.0,
) -> int:
    """Write the patches of a class map as polygons into a GeoPackage, atomically.

    The layer `classes` has class_id, class_name, area_m2 (on the ellipsoid; not without a projected
    or geographic CRS), pixels, and mean_conf with a confidence map.

    Args:
        source: The class map.
        target: The GeoPackage, which is replaced if it exists.
        classes: The classes of the map.
        confidence: Confidence map on the same grid.
        sieve: Size in pixels below which patches are replaced by a neighbour (`sieve_patches`).
        simplify: Tolerance of the outlines in units of the CRS. Neighbours are simplified
            separately, so that gaps and overlaps may appear between them.

    Returns:
        The number of polygons.

    Raises:
        RssegError: The file cannot be written.
    """
    require_geopackage(target)
    draft = target.with_name(f".{target.name}.tmp.gpkg")
    with rasterio.open(source) as file:
        grid = _Grid.of(file)
        areas = PixelAreas.of(file)
    names = {cls.id: cls.name for cls in classes}
    patches = patches_of(source, confidence, sieve=sieve, areas=areas)
    count = 0
    mode: Literal["w", "a"] = "w"
    try:
        batch = list(islice(patches, BATCH))
        while batch or mode == "w":  # a map without patches has an empty layer
            table = _table(batch, names, grid, simplify)
            if areas is not None:
                table.insert(2, "area_m2", np.array([patch.area_m2 for patch in batch], np.float64))
            if confidence is not None:
                means = [patch.confidence_sum / patch.pixels for patch in batch]
                table["mean_conf"] = np.array(means, np.float64)
            with write_errors("the polygons", target.parent, kinds=(OSError, RuntimeError)):
                table.to_file(draft, layer=LAYER, driver="GPKG", mode=mode, engine="pyogrio")
            count, mode = count + len(batch), "a"
            batch = list(islice(patches, BATCH))
        draft.replace(target)
    finally:
        for temporary in target.parent.glob(f"{draft.name}*"):
            temporary.unlink()
    return count


def require_geopackage(target: Path) -> None:
    """Check that a vector file is a GeoPackage.

    Raises:
        RssegError: Its suffix is not .gpkg.
    """
    if target.suffix.lower() != ".gpkg":
        raise RssegError(
            f"polygons cannot be written as {target.suffix or 'a file without suffix'}",
            where=str(target),
            fix="a name that ends with .gpkg",
        )


def patches_of(
    source: Path,
    confidence: Path | None = None,
    *,
    sieve: int = 0,
    areas: PixelAreas | None = None,
) -> Iterator[Patch]:
    """Yield the patches of a class map from top to bottom, without those of nodata."""
    with ExitStack() as stack:
        file = stack.enter_context(rasterio.open(source))
        confidence_file = confidence and stack.enter_context(rasterio.open(confidence))
        open_patches: dict[int, Patch] = {}
        above: tuple[NDArray[np.uint8], PatchNumbers] | None = None
        rows = max(BLOCK, STRIP_PIXELS // file.width // BLOCK * BLOCK)
        for top in range(0, file.height, rows):
            bottom = min(file.height, top + rows)
            values = _read_sieved(file, top, bottom, sieve)
            numbers, count = label_patches(values)
            patches = _measure(values, numbers, count, confidence_file, top, areas)
            _add_pieces(patches, values, numbers, top)
            if above is not None:
                patches = _join(open_patches, above, patches, (values[0], numbers[0]))
            last = set() if bottom == file.height else set(np.unique(numbers[-1]).tolist())
            open_patches = {number: patches[number] for number in last}
            still_open = {id(patch) for patch in open_patches.values()}
            unique = {id(patch): patch for patch in patches.values()}
            for key, patch in unique.items():
                if key not in still_open and patch.value != IGNORE:
                    yield patch
            above = (values[-1], numbers[-1])


def _read_sieved(file: Any, top: int, bottom: int, sieve: int) -> NDArray[np.uint8]:
    """Read rows, sieved as part of the whole map."""
    # A small patch extends over less than `sieve` rows, and the size of its neighbour is decided
    # within as many rows beyond it.
    halo = 2 * sieve
    first, last = max(0, top - halo), min(file.height, bottom + halo)
    values: NDArray[np.uint8] = file.read(1, window=FileWindow(0, first, file.width, last - first))
    if sieve > 1:
        values = sieve_patches(values, sieve)
    return values[top - first : bottom - first]


def _measure(
    values: NDArray[np.uint8],
    numbers: PatchNumbers,
    count: int,
    confidence: Any,
    top: int,
    areas: PixelAreas | None,
) -> dict[int, Patch]:
    """Return the patches of a strip without their outlines."""
    flat = numbers.ravel()
    classes = np.zeros(count, np.uint8)
    classes[numbers] = values
    pixels = np.bincount(flat, minlength=count)
    sums: NDArray[Any] = np.zeros(count)
    if confidence is not None:
        window = FileWindow(0, top, values.shape[1], values.shape[0])
        weights = confidence.read(1, window=window) * confidence.scales[0]
        sums = np.bincount(flat, weights.ravel(), minlength=count)
    sizes: NDArray[Any] = np.zeros(count)
    if areas is not None:
        height, width = values.shape
        step = max(1, MEASURED_PIXELS // width)
        for first in range(0, height, step):
            strip = Window(0, top + first, width, min(step, height - first))
            part = numbers[first : first + step].ravel()
            sizes += np.bincount(part, areas.within(strip).ravel(), minlength=count)
    rows = zip(classes.tolist(), pixels.tolist(), sums.tolist(), sizes.tolist(), strict=True)
    return {number: Patch(*row) for number, row in enumerate(rows)}


def _add_pieces(
    patches: dict[int, Patch], values: NDArray[np.uint8], numbers: PatchNumbers, top: int
) -> None:
    """Add the outlines of the patches of a strip, in pixels of the map."""
    transform = rasterio.Affine.translation(0, top)
    polygons, owners = [], []
    for shape, number in shapes(numbers, values != IGNORE, connectivity=4, transform=transform):
        polygons.append(shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]))
        owners.append(int(number))
    outlines = np.array(polygons, object)
    invalid = ~shapely.is_valid(outlines)
    outlines[invalid] = shapely.make_valid(outlines[invalid], method="structure")
    for outline, number in zip(outlines, owners, strict=True):
        patches[number].pieces.append(outline)


def _join(
    open_patches: dict[int, Patch],
    above: tuple[NDArray[np.uint8], PatchNumbers],
    patches: dict[int, Patch],
    below: tuple[NDArray[np.uint8], PatchNumbers],
) -> dict[int, Patch]:
    """Join the patches of a strip with the open patches that they touch.

    Args:
        open_patches: Open patches by their number in the strip above.
        above: Values and patch numbers of the last row of the strip above.
        patches: Patches by their number in this strip.
        below: Values and patch numbers of the first row of this strip.

    Returns:
        The joined patches by their number in this strip. A patch may have several numbers; an open
        patch that ends here has a negative one.
    """
    same = above[0] == below[0]
    pairs = np.unique(np.stack([above[1][same], below[1][same]]), axis=1).T.tolist()
    parent: dict[int, Patch] = {}

    def root(patch: Patch) -> Patch:
        while id(patch) in parent:
            patch = parent[id(patch)]
        return patch

    for upper, lower in pairs:
        large, small = root(open_patches[upper]), root(patches[lower])
        if large is not small:
            # Appending to the longer list keeps a patch over many strips linear in time.
            if len(large.pieces) < len(small.pieces):
                large, small = small, large
            large.absorb(small)
            parent[id(small)] = large
    joined = {number: root(patch) for number, patch in patches.items()}
    ended = (root(patch) for patch in open_patches.values())
    return joined | {-1 - index: patch for index, patch in enumerate(ended)}


@dataclass(frozen=True)
class _Grid:
    """Grid of a map.

    Attributes:
        crs: CRS as text, if any.
        transform: Pixel corners to the CRS.
    """

    crs: str | None
    transform: rasterio.Affine

    @classmethod
    def of(cls, file: Any) -> _Grid:
        return cls(file.crs.to_wkt() if file.crs else None, file.transform)

    def to_crs(self, points: NDArray[Any]) -> NDArray[Any]:
        """Transform points (N, 2) from pixels to the CRS."""
        a, b, c, d, e, f = self.transform[:6]
        x, y = points.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1)


def _table(patches: Sequence[Patch], names: dict[int, str], grid: _Grid, simplify: float) -> Any:
    """Return the GeoDataFrame of patches, with collinear vertices removed."""
    import geopandas  # takes a second to import, and maps without polygons do not need it

    outlines = shapely.simplify(np.array([patch.union() for patch in patches], object), 0)
    outlines = shapely.transform(outlines, grid.to_crs)
    if simplify > 0:
        simpler = shapely.simplify(outlines, simplify)
        usable = shapely.is_valid(simpler) & ~shapely.is_empty(simpler)
        outlines = np.where(usable, simpler, outlines)
    columns = {
        "class_id": np.array([patch.value for patch in patches], np.int32),
        "class_name": [names.get(patch.value, "") for patch in patches],
        "pixels": np.array([patch.pixels for patch in patches], np.int64),
    }
    return geopandas.GeoDataFrame(columns, geometry=outlines, crs=grid.crs)
