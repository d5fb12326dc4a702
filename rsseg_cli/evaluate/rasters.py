"""Compares maps with the truth, window by window, and collects the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import rasterio

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.evaluate.pixel_area import count_classes, hectares_per_pixel
from rsseg_cli.evaluate.reference import Truth, classes_of, code_of, open_truth
from rsseg_cli.evaluate.soft_map import SoftMap, is_soft
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.raster.align import describe_grid, same_grid
from rsseg_cli.raster.decode import LabelCode, Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import Placed, RasterLabels
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.tile_gallery import Sample, shrink
from rsseg_cli.words import counted

BOUNDARY_PX = 3
"""Width of the outlines that the boundary scores compare, unless told otherwise."""
_STEP = (1024, 4096)
"""Rows and columns that are compared at a time: memory does not grow with the map."""
_CACHE = 2**28
"""Bytes of blocks that GDAL keeps; by default a share of the machine's memory."""
_BLOCKS, _LEAST_BLOCK = 8, 64
"""A scene is cut into some 8 x 8 blocks, each at least 64 pixels wide, that are counted apart."""
_CROP, _SHOWN, _LABELLED = 512, 256, 0.1
"""Of a block the middle 512 pixels are shown, every other one, if 10 % of it have a truth."""
STEPS = 254
"""A map of confidences holds shares times this."""


@dataclass(frozen=True)
class Comparison:
    """One map with its truth.

    Attributes:
        name: Name of the scene.
        prediction: The map: class ids in one band.
        open_truth: Opens the truth on the grid of the map.
        domain: Domain it counts for, if any.
        regions: Ground that counts, disjoint windows of the map; None: all of it.
        open_image: Opens the scene that was mapped, to show tiles of it.
        rgb: Bands of that scene, from 0, shown as red, green, blue, or one shown as grey.
        confidence: How sure the model is, a map in steps of 1/254 on the same grid.
        soft: A soft map of the second of two classes on the same grid, or the map itself.
    """

    name: str
    prediction: Path
    open_truth: Callable[[Placed], Truth]
    domain: str | None = None
    regions: tuple[Window, ...] | None = None
    open_image: Callable[[], Scene] | None = None
    rgb: tuple[int, ...] = (0,)
    confidence: Path | None = None
    soft: Path | None = None


def evaluate_rasters(
    prediction: str | PathLike[str],
    truth: str | PathLike[str],
    classes: Sequence[Class] | LabelCode | None = None,
    *,
    align: bool = False,
    attribute: str | None = None,
    ignore: Sequence[int] = (),
    boundary_px: int | None = BOUNDARY_PX,
    image: str | PathLike[str] | None = None,
    soft: bool | None = None,
) -> Evaluation:
    """Score one map against its truth.

    Args:
        prediction: A raster of class ids; 255 and its nodata value are unmapped. Or a soft map
            of the second of two classes, which is cut at one half.
        truth: A raster on the same grid (ids, or RGB colours of the classes), or polygons in any
            CRS.
        classes: The classes, or all that there is to say about how the truth writes them. When
            None, those named beside the map, else beside the truth, else the ids in use.
        align: Resample a truth on another grid, nearest neighbour.
        attribute: Attribute of polygons that says the class; found by its values when None.
        ignore: Ids in the truth that are no class, besides 255; a truth of 0 and 255 is taken as
            a mask of two classes unless 255 is named.
        boundary_px: Width of the outlines to compare; None leaves boundary scores out.
        image: The scene that was mapped, to show tiles of it.
        soft: Whether the map is soft; None: as it says itself, by floats or a scale.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: The grids differ and `align` is off, values that are no class, no truth.
    """
    prediction, truth = Path(prediction), Path(truth)
    remarks: list[str] = []
    soft = is_soft(prediction) if soft is None else soft
    if isinstance(classes, LabelCode):
        code = replace(classes, field=attribute or classes.field, ignore=(*classes.ignore, *ignore))
    else:
        known = list(classes or ()) or classes_of(prediction, truth, remarks, soft=soft)
        code = code_of(truth, known, attribute, ignore)
        if code.encoding == "threshold":
            meant = f"255 is taken as {known[1].name} (--ignore 255 if it is no class)"
            remarks.append(f"the truth holds 0 and 255: {meant}")
    opened = partial(open_truth, truth, code, align=align)
    one = Comparison(prediction.name, prediction, opened, soft=prediction if soft else None)
    if image is not None:
        rgb = _bands_of(Path(image), prediction)
        one = replace(one, open_image=partial(Scene.open, image, warn=False), rgb=rgb)
    found = evaluate_scenes([one], code.classes, boundary_px=boundary_px)
    found.code = code
    found.remarks += remarks + _doubts(found.total)
    return found


def _bands_of(image: Path, prediction: Path) -> tuple[int, ...]:
    """Choose the bands of an image to show, once it is known to be on the grid of the map."""
    with Scene.open(image, warn=False) as scene, Scene.open(prediction, warn=False) as made:
        if not same_grid(scene, made):
            raise RssegError(
                f"image ({describe_grid(scene)}) and map ({describe_grid(made)}) are on "
                "different grids",
                where=f"{image}, {prediction}",
                fix="the scene that the map was made of",
            )
        return (0, 1, 2) if scene.count >= 3 else (0,)


def evaluate_scenes(
    comparisons: Iterable[Comparison],
    classes: Sequence[Class],
    *,
    boundary_px: int | None = BOUNDARY_PX,
) -> Evaluation:
    """Score maps against their truth, over all, per scene and per domain.

    Maps are opened one after the other, so that an iterator may make them on the way. Scenes of
    one name count as one.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: Values that are no class, or no pixel with truth in any scene.
    """
    total = Evaluation.of(classes, boundary_px=boundary_px)
    grids = []
    for one in comparisons:
        opened = SoftMap.open if one.soft == one.prediction else _open_map
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), closing(opened(one.prediction, classes)) as scene:
            grids.append(f"{one.name}: {describe_grid(scene.place)}")
            _compare(scene, one, total)
    if total.total.pixels == 0:
        raise RssegError(
            "no pixel of the map has a class in the truth",
            where="; ".join(grids[:3]) or "nothing to compare",
            fix="check that the truth covers the map (CRS and extent) and what it ignores",
        )
    return total


def _compare(scene: RasterLabels | SoftMap, one: Comparison, into: Evaluation) -> None:
    """Count one scene, window by window, and every block of it on its own."""
    place = scene.place
    regions = one.regions or (Window(0, 0, place.width, place.height),)
    side = max(_LEAST_BLOCK, math.ceil(math.sqrt(place.width * place.height) / _BLOCKS))
    cells: dict[Window, ConfusionMatrix] = {}
    with ExitStack() as stack:
        truth = one.open_truth(place)
        stack.callback(truth.close)
        sure = None
        if one.confidence is not None:
            sure = stack.enter_context(Scene.open(one.confidence, warn=False))
        mapped = np.zeros(len(into.classes), np.int64)
        for region in regions:
            for window, true, predicted in _windows(scene, truth, region, into):
                mapped += count_classes(predicted, len(mapped))
                for cell, part in _parts(window, region, side):
                    matrix = cells.setdefault(cell, ConfusionMatrix(into.classes))
                    matrix.update(predicted[part], true[part])
                if sure is not None:
                    known = (true != IGNORE) & (predicted != IGNORE)
                    share = sure.read(window)[0][0][known] / STEPS
                    into.calibration.update(share, (true == predicted)[known])
        into.add_mapped(mapped, hectares_per_pixel(place))
        into.add(one.name, one.domain, list(cells.values()))
        if one.soft is not None:
            _score_soft(one.soft, truth, regions, into)
        _show(scene, truth, one, cells, into)


def _score_soft(path: Path, truth: Truth, regions: Sequence[Window], into: Evaluation) -> None:
    if into.saliency is None:
        from rsseg_cli.metrics.saliency import Saliency  # PySODMetrics is slow to import

        into.saliency = Saliency(stretch=False)
    with closing(SoftMap.open(path, into.classes)) as soft:
        soft.score(truth, regions, into.saliency)


def _windows(
    scene: RasterLabels | SoftMap, truth: Truth, region: Window, into: Evaluation
) -> Iterator[tuple[Window, Labels, Labels]]:
    """Read truth and map (h, w) of a region window by window, and count outlines on the way."""
    halo = into.boundary.distance if into.boundary else 0
    for part in blocks(region.width, region.height, _STEP):
        window = part.shift(region.x, region.y)
        wide = Window(
            window.x - halo, window.y - halo, window.width + 2 * halo, window.height + 2 * halo
        )
        true, predicted = truth.read(wide), scene.read(wide)
        inside = (slice(halo, halo + window.height), slice(halo, halo + window.width))
        if into.boundary:
            into.boundary.update(predicted, true, inside)
        yield window, true[inside], predicted[inside]


def _parts(
    window: Window, region: Window, side: int
) -> Iterator[tuple[Window, tuple[slice, slice]]]:
    """Cut a window along the blocks of its region: each block, and where in the window it lies."""
    for part in blocks(region.width, region.height, (side, side)):
        cell = part.shift(region.x, region.y)
        both = cell.intersect(window)
        if both is not None:
            own = both.shift(-window.x, -window.y)
            yield cell, (slice(own.y, own.bottom), slice(own.x, own.right))


def _show(
    scene: RasterLabels | SoftMap,
    truth: Truth,
    one: Comparison,
    cells: Mapping[Window, ConfusionMatrix],
    into: Evaluation,
) -> None:
    """Offer the blocks of a scene to the gallery."""
    if one.open_image is None:
        return
    side = max((max(cell.width, cell.height) for cell in cells), default=0)

    def load(cell: Window, score: float) -> Sample:
        width, height = min(cell.width, _CROP), min(cell.height, _CROP)
        crop = Window(
            cell.x + (cell.width - width) // 2, cell.y + (cell.height - height) // 2, width, height
        )
        samples, valid = image.read(crop)
        return Sample(
            f"{one.name} at {crop.x}, {crop.y}",
            score,
            shrink(truth.read(crop), _SHOWN),
            shrink(scene.read(crop), _SHOWN),
            shrink(samples[list(one.rgb)], _SHOWN),
            shrink(valid, _SHOWN),
        )

    with one.open_image() as image:
        for cell, matrix in cells.items():
            miou = matrix.scores().miou
            if miou is not None and matrix.pixels > side * side * _LABELLED:
                into.gallery.consider(miou, partial(load, cell, miou))


def _open_map(path: Path, classes: Sequence[Class]) -> RasterLabels:
    """Open a map of class ids, to be read as class indices.

    Raises:
        RssegError: The raster does not hold ids.
    """
    labels = RasterLabels.open(path, LabelCode(tuple(classes), ignore=(IGNORE,)))
    scene = labels.place
    if scene.count != 1 or scene.dtype.startswith("float"):
        labels.close()
        raise RssegError(
            f"{scene.dtype} in {counted(scene.count, 'band')} is no map of class ids",
            where=str(path),
            fix="one band of integers, as `rsseg predict` writes it",
        )
    return labels


def _doubts(total: ConfusionMatrix) -> list[str]:
    """Say what looks wrong about the counts as a whole."""
    scores = total.scores()
    found = []
    if len(scores.classes) == 2 and len(scores.present) == 1:
        found.append(
            f"the truth holds nothing but {scores.present[0].name}: does it cover the map?"
        )
    if scores.unmapped > scores.pixels / 2:
        found.append(f"the map is empty on {scores.unmapped / scores.pixels:.0%} of the truth")
    return found
