"""Comparison of maps with their reference, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import rasterio

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.evaluate.reference import classes_of, infer_code, open_reference
from rsseg_cli.evaluate.soft_map import SoftMap, is_soft
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.raster.align import describe_grid, same_grid
from rsseg_cli.raster.decode import LabelCode, Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import LabelReader, RasterGrid
from rsseg_cli.raster.pixel_size import PixelAreas
from rsseg_cli.raster.predicted_map import PredictedMap
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.tile_gallery import TileSample, subsample

BOUNDARY_PX = 3
"""Default width of the outlines for the boundary scores."""
CONFIDENCE_STEPS = 254
"""Stored value of confidence 1 in a confidence map."""
_STEP = (1024, 4096)
"""Rows and columns compared at a time, so that memory does not grow with the map."""
_COUNTED_ROWS = 64
"""Rows counted at a time, since bincount takes 8 bytes per pixel."""
_CACHE = 2**28
"""GDAL's block cache in bytes; its default is a fraction of the machine's memory."""
_BLOCKS, _MIN_BLOCK_PX = 8, 64
"""A scene is divided into about 8 x 8 blocks of at least 64 pixels, each with its own counts."""
_CROP_PX, _SHOWN_PX, _LABELLED = 512, 256, 0.1
"""The gallery shows the middle 512 pixels of a block, at 256, if 10 % of the block are labelled."""


@dataclass(frozen=True)
class Comparison:
    """One map with its reference.

    Attributes:
        name: Name of the scene.
        prediction: The map, with class ids in one band, or a soft map.
        open_truth: Opens the reference on the grid of the map.
        domain: Domain of the scene, if any.
        regions: Disjoint windows of the map to score; None: all of it.
        open_image: Opens the scene that was mapped, for pictures of tiles.
        rgb: Bands of that scene, from 0, to show as red, green and blue, or one to show as grey.
        confidence: Map of the highest class probability on the same grid, in steps of 1/254.
        soft: Soft map on the same grid: `prediction` itself, or another file.
    """

    name: str
    prediction: Path
    open_truth: Callable[[RasterGrid], LabelReader]
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
    """Score one map against its reference.

    Args:
        prediction: A raster of class ids, in which 255 and the nodata value are unmapped. Or a
            probability map of the second of two classes, which is thresholded at 0.5.
        truth: A raster on the same grid (ids, or RGB colours of the classes), or polygons in any
            CRS.
        classes: The classes, or the full encoding of the reference. None: the classes listed
            beside the map, else beside the reference, else the ids in use.
        align: Resample a reference on another grid by nearest neighbour.
        attribute: Attribute of polygons with the class; None: inferred from the values.
        ignore: Ids in the reference to ignore besides 255. A reference of 0 and 255 is read as a
            mask of two classes, unless 255 is listed.
        boundary_px: Width of the outlines in pixels; None omits the boundary scores.
        image: The scene that was mapped, for pictures of tiles.
        soft: The map holds probabilities; None: detected from a float dtype or a scale factor.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: The grids differ and `align` is off, a value is not a class, or no pixel of
            the map is labelled.
    """
    prediction, truth = Path(prediction), Path(truth)
    remarks: list[str] = []
    soft = is_soft(prediction) if soft is None else soft
    if isinstance(classes, LabelCode):
        code = replace(classes, field=attribute or classes.field, ignore=(*classes.ignore, *ignore))
    else:
        known = list(classes or ()) or classes_of(prediction, truth, remarks, soft=soft)
        code = infer_code(truth, known, attribute, ignore)
        if code.encoding == "threshold":
            meaning = f"255 is read as {known[1].name} (--ignore 255 if it is not a class)"
            remarks.append(f"the truth holds 0 and 255: {meaning}")
    opener = partial(open_reference, truth, code, align=align)
    comparison = Comparison(prediction.name, prediction, opener, soft=prediction if soft else None)
    if image is not None:
        rgb = _rgb_bands(Path(image), prediction)
        comparison = replace(comparison, open_image=partial(Scene.open, image, warn=False), rgb=rgb)
    evaluation = evaluate_scenes([comparison], code.classes, boundary_px=boundary_px)
    evaluation.code = code
    evaluation.remarks += remarks + _warnings(evaluation.total)
    return evaluation


def _rgb_bands(image: Path, prediction: Path) -> tuple[int, ...]:
    """Return the bands of an image to show, from 0; check that it is on the grid of the map."""
    with Scene.open(image, warn=False) as scene, Scene.open(prediction, warn=False) as mapped:
        if not same_grid(scene, mapped):
            raise RssegError(
                f"image ({describe_grid(scene)}) and map ({describe_grid(mapped)}) are on "
                "different grids",
                where=f"{image}, {prediction}",
                fix="the scene from which the map was predicted",
            )
        return (0, 1, 2) if scene.count >= 3 else (0,)


def evaluate_scenes(
    comparisons: Iterable[Comparison],
    classes: Sequence[Class],
    *,
    boundary_px: int | None = BOUNDARY_PX,
) -> Evaluation:
    """Score maps of the same classes against their reference: in total, per scene and per domain.

    Maps are opened one after the other, so that an iterator may write each map just before it is
    scored. Comparisons of the same name are added up.

    Args:
        comparisons: The maps.
        classes: The classes of all maps.
        boundary_px: Width of the outlines in pixels; None omits the boundary scores.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: A value is not a class, or no pixel of any map is labelled.
    """
    total = Evaluation.empty(classes, boundary_px=boundary_px)
    grids = []
    for comparison in comparisons:
        path = comparison.prediction
        map_type = SoftMap if comparison.soft == path else PredictedMap
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), map_type.open(path, classes) as mapped:
            grids.append(f"{comparison.name}: {describe_grid(mapped.scene)}")
            _compare(mapped, comparison, total)
    if total.total.pixels == 0:
        raise RssegError(
            "no pixel of the map has a class in the truth",
            where="; ".join(grids[:3]) or "nothing to compare",
            fix="check CRS and extent of the truth, and its ignored values",
        )
    return total


def _compare(mapped: PredictedMap | SoftMap, comparison: Comparison, total: Evaluation) -> None:
    """Add the counts of one map and of its blocks."""
    scene = mapped.scene
    regions = comparison.regions or (Window(0, 0, scene.width, scene.height),)
    side = max(_MIN_BLOCK_PX, math.ceil(math.sqrt(scene.width * scene.height) / _BLOCKS))
    matrices: dict[Window, ConfusionMatrix] = {}
    with ExitStack() as stack:
        truth = stack.enter_context(comparison.open_truth(scene))
        confidence_map = None
        if comparison.confidence is not None:
            confidence_map = stack.enter_context(Scene.open(comparison.confidence, warn=False))
        areas = PixelAreas.of(scene)
        pixels = np.zeros(len(total.classes), np.int64)
        sizes = np.zeros(len(total.classes))
        for region in regions:
            for window, true, predicted in _windows(mapped, truth, region, total):
                for first in range(0, len(predicted), _COUNTED_ROWS):
                    rows = predicted[first : first + _COUNTED_ROWS]
                    pixels += np.bincount(rows.ravel(), minlength=256)[: len(pixels)]
                    if areas is not None:
                        part = Window(window.x, window.y + first, window.width, len(rows))
                        weights = areas.within(part).ravel()
                        sizes += np.bincount(rows.ravel(), weights, minlength=256)[: len(sizes)]
                for block, inside in _blocks(window, region, side):
                    matrix = matrices.setdefault(block, ConfusionMatrix(total.classes))
                    matrix.update(predicted[inside], true[inside])
                if confidence_map is not None:
                    known = (true != IGNORE) & (predicted != IGNORE)
                    confidence = confidence_map.read(window)[0][0][known] / CONFIDENCE_STEPS
                    total.calibration.update(confidence, (true == predicted)[known])
        total.add_mapped(pixels, None if areas is None else sizes)
        total.add(comparison.name, comparison.domain, list(matrices.values()))
        if comparison.soft is not None:
            _score_soft_map(comparison.soft, truth, regions, total)
        if comparison.open_image is not None:
            with comparison.open_image() as image:
                _fill_gallery(mapped, truth, image, comparison, matrices, total)


def _score_soft_map(
    path: Path, truth: LabelReader, regions: Sequence[Window], total: Evaluation
) -> None:
    if total.saliency is None:
        from rsseg_cli.metrics.saliency import Saliency  # PySODMetrics is slow to import

        total.saliency = Saliency()
    with SoftMap.open(path, total.classes) as soft:
        soft.score(truth, regions, total.saliency)


def _windows(
    mapped: PredictedMap | SoftMap, truth: LabelReader, region: Window, total: Evaluation
) -> Iterator[tuple[Window, Labels, Labels]]:
    """Yield windows of a region with their reference and map (h, w), and count the outlines."""
    halo = total.boundary.distance if total.boundary else 0
    for part in blocks(region.width, region.height, _STEP):
        window = part.shift(region.x, region.y)
        wide = Window(
            window.x - halo, window.y - halo, window.width + 2 * halo, window.height + 2 * halo
        )
        true, predicted = truth.read(wide), mapped.read(wide)
        inside = window.slices_in(wide)
        if total.boundary:
            total.boundary.update(predicted, true, inside)
        yield window, true[inside], predicted[inside]


def _blocks(
    window: Window, region: Window, side: int
) -> Iterator[tuple[Window, tuple[slice, slice]]]:
    """Yield the blocks of a region that overlap a window, and their slices of the window."""
    for part in blocks(region.width, region.height, (side, side)):
        block = part.shift(region.x, region.y)
        overlap = block.intersect(window)
        if overlap is not None:
            yield block, overlap.slices_in(window)


def _fill_gallery(
    mapped: PredictedMap | SoftMap,
    truth: LabelReader,
    image: Scene,
    comparison: Comparison,
    matrices: Mapping[Window, ConfusionMatrix],
    total: Evaluation,
) -> None:
    """Add the best and the worst blocks of a scene to the gallery."""
    side = max((max(block.width, block.height) for block in matrices), default=0)

    def load(block: Window, score: float) -> TileSample:
        width, height = min(block.width, _CROP_PX), min(block.height, _CROP_PX)
        x, y = block.x + (block.width - width) // 2, block.y + (block.height - height) // 2
        crop = Window(x, y, width, height)
        samples, valid = image.read(crop)
        arrays = (truth.read(crop), mapped.read(crop), samples[list(comparison.rgb)], valid)
        return TileSample(
            f"{comparison.name} at {x}, {y}",
            score,
            *(subsample(array, _SHOWN_PX) for array in arrays),
        )

    for block, matrix in matrices.items():
        miou = matrix.scores().miou
        if miou is not None and matrix.pixels > side * side * _LABELLED:
            total.gallery.add(miou, partial(load, block, miou))


def _warnings(total: ConfusionMatrix) -> list[str]:
    """Return warnings about implausible counts."""
    scores = total.scores()
    sentences = []
    if len(scores.classes) == 2 and len(scores.present) == 1:
        only = scores.present[0].name
        sentences.append(f"all labelled pixels are {only}: check that the truth covers the map")
    if scores.unmapped > scores.pixels / 2:
        unmapped = scores.unmapped / scores.pixels
        sentences.append(f"the map is empty on {unmapped:.0%} of the labelled pixels")
    return sentences
