"""Compares maps with the truth, window by window, and collects the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.truth import Truth, classes_of, code_of, open_truth
from rsseg_cli.metrics.boundary import BoundaryIoU
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.raster.align import describe_grid
from rsseg_cli.raster.decode import LabelCode, Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import Placed, open_quietly
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.report import Report

BOUNDARY_PX = 3
"""Width of the outlines that the boundary scores compare, unless told otherwise."""
_STEP = (1024, 4096)
"""Rows and columns that are compared at a time: memory does not grow with the map."""
_CACHE = 2**28
"""Bytes of blocks that GDAL keeps; by default a share of the machine's memory."""
_UNKNOWN = -1


@dataclass
class Evaluation:
    """What comparisons add up to.

    Attributes:
        classes: The classes, in the order of the indices.
        total: Counts over everything.
        boundary: Outlines over everything; None when they were not asked for.
        scenes: Counts per scene.
        domains: Counts per domain.
        saliency: Scores of a soft map, where there is one.
        remarks: What a reader of the scores should know.
    """

    classes: Sequence[Class]
    total: ConfusionMatrix
    boundary: BoundaryIoU | None
    scenes: dict[str, ConfusionMatrix] = field(default_factory=dict)
    domains: dict[str, ConfusionMatrix] = field(default_factory=dict)
    saliency: dict[str, float | None] | None = None
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, classes: Sequence[Class], *, boundary_px: int | None) -> Evaluation:
        """Begin with nothing counted."""
        boundary = BoundaryIoU(classes, distance=boundary_px) if boundary_px else None
        return cls(classes, ConfusionMatrix(classes), boundary)

    def scores(self) -> Scores:
        """Give the scores, with those of the domains, or else of the scenes, as groups."""
        scenes = {name: matrix.scores() for name, matrix in self.scenes.items()}
        domains = {name: matrix.scores() for name, matrix in self.domains.items()}
        groups = domains or (scenes if len(scenes) > 1 else {})
        found = replace(self.total.scores(), groups=groups, scenes=scenes, saliency=self.saliency)
        return self.boundary.add_to(found) if self.boundary else found

    def report(self, title: str, **more: Any) -> Report:
        """Make a report of the scores; `more` are further attributes of `Report`."""
        return Report(title, self.scores(), remarks=tuple(self.remarks), **more)


@dataclass(frozen=True)
class Comparison:
    """One map with its truth.

    Attributes:
        name: Name of the scene.
        prediction: The map: class ids in one band.
        open_truth: Opens the truth on the grid of the map.
        domain: Domain it counts for, if any.
        regions: Ground that counts, disjoint windows of the map; None: all of it.
    """

    name: str
    prediction: Path
    open_truth: Callable[[Placed], Truth]
    domain: str | None = None
    regions: tuple[Window, ...] | None = None


def evaluate_rasters(
    prediction: str | PathLike[str],
    truth: str | PathLike[str],
    classes: Sequence[Class] | LabelCode | None = None,
    *,
    align: bool = False,
    attribute: str | None = None,
    ignore: Sequence[int] = (),
    boundary_px: int | None = BOUNDARY_PX,
) -> Evaluation:
    """Score one map against its truth.

    Args:
        prediction: A raster of class ids; 255 and its nodata value are unmapped.
        truth: A raster on the same grid (ids, or RGB colours of the classes), or polygons in any
            CRS.
        classes: The classes, or all that there is to say about how the truth writes them. When
            None, those named beside the map, else beside the truth, else the ids in use.
        align: Resample a truth on another grid, nearest neighbour.
        attribute: Attribute of polygons that says the class; found by its values when None.
        ignore: Ids in the truth that are no class, besides 255.
        boundary_px: Width of the outlines to compare; None leaves boundary scores out.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: The grids differ and `align` is off, values that are no class, no truth.
    """
    prediction, truth = Path(prediction), Path(truth)
    remarks: list[str] = []
    if isinstance(classes, LabelCode):
        code = replace(classes, field=attribute or classes.field, ignore=(*classes.ignore, *ignore))
    else:
        known = list(classes or ()) or classes_of(prediction, truth, remarks)
        code = code_of(truth, known, attribute, ignore)
    opened = partial(open_truth, truth, code, align=align)
    one = Comparison(prediction.name, prediction, opened)
    found = evaluate_scenes([one], code.classes, boundary_px=boundary_px)
    found.remarks += remarks + _doubts(found.total)
    return found


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
        counts = ConfusionMatrix(classes)
        with rasterio.Env(GDAL_CACHEMAX=_CACHE), _Map.open(one.prediction, classes) as scene:
            grids.append(f"{one.name}: {describe_grid(scene.place)}")
            _compare(scene, one, counts, total.boundary)
        total.total += counts
        for parts, name in ((total.scenes, one.name), (total.domains, one.domain)):
            if name is not None:
                parts[name] = parts.get(name, ConfusionMatrix(classes)) + counts
    if total.total.pixels == 0:
        raise RssegError(
            "no pixel of the map has a class in the truth",
            where="; ".join(grids[:3]) or "nothing to compare",
            fix="check that the truth covers the map (CRS and extent) and what it ignores",
        )
    return total


def _compare(
    scene: _Map, one: Comparison, counts: ConfusionMatrix, boundary: BoundaryIoU | None
) -> None:
    """Count one scene, window by window."""
    width, height = scene.place.width, scene.place.height
    halo = boundary.distance if boundary else 0
    truth = one.open_truth(scene.place)
    try:
        for region in one.regions or (Window(0, 0, width, height),):
            for part in blocks(region.width, region.height, _STEP):
                window = part.shift(region.x, region.y)
                wide = Window(
                    window.x - halo,
                    window.y - halo,
                    window.width + 2 * halo,
                    window.height + 2 * halo,
                )
                true, predicted = truth.read(wide), scene.read(wide)
                inside = (slice(halo, halo + window.height), slice(halo, halo + window.width))
                counts.update(predicted[inside], true[inside])
                if boundary:
                    boundary.update(predicted, true, inside)
    finally:
        truth.close()


class _Map:
    """A map of class ids, read as class indices."""

    def __init__(self, scene: Scene, classes: Sequence[Class]) -> None:
        self.place, self._classes = scene, classes
        self._indices = np.full(256, _UNKNOWN, np.int16)
        self._indices[IGNORE] = IGNORE
        for index, one in enumerate(classes):
            self._indices[one.id] = index

    @classmethod
    def open(cls, path: Path, classes: Sequence[Class]) -> _Map:
        scene = open_quietly(path)
        # A nodata tag says "nothing here", but where the class list names the value it wins.
        if scene.nodata in {one.id for one in classes}:
            scene.close()
            scene = open_quietly(path, nodata=float("nan"))
        if scene.count != 1 or scene.dtype.startswith("float"):
            scene.close()
            raise RssegError(
                f"{scene.count} band(s) of {scene.dtype} are no map of class ids",
                where=str(path),
                fix="one band of integers, as `rsseg predict` writes it",
            )
        return cls(scene, classes)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w); `IGNORE` outside the scene and where the map is empty."""
        samples, valid = self.place.read(window)
        ids = np.where(valid, samples[0], IGNORE)
        if ids.dtype == np.uint8:
            indices = self._indices[ids]
        else:
            fits = (ids >= 0) & (ids <= IGNORE)
            indices = np.where(fits, self._indices[np.where(fits, ids, 0)], _UNKNOWN)
        unknown = indices == _UNKNOWN
        if unknown.any():
            self._refuse(np.unique(ids[unknown]))
        found: Labels = indices.astype(np.uint8)
        return found

    def _refuse(self, odd: NDArray[Any]) -> None:
        known = ", ".join(f"{one.id} {one.name}" for one in self._classes)
        raise RssegError(
            f"the map holds ids that are no class: {', '.join(map(str, odd[:10]))}",
            where=self.place.path,
            fix=f"the class list that the map was made with (known: {known})",
        )

    def __enter__(self) -> _Map:
        return self

    def __exit__(self, *exc: object) -> None:
        self.place.close()


def _doubts(total: ConfusionMatrix) -> list[str]:
    """Say what looks wrong about the counts as a whole."""
    scores = total.scores()
    found = []
    if len(scores.classes) == 2 and len(scores.present) == 1:
        found.append(
            f"the truth holds nothing but {scores.present[0].name}: does it cover the map, and is "
            "it a mask of 0 and 255 (`encoding: threshold` in a dataset.yaml)?"
        )
    if scores.unmapped > scores.pixels / 2:
        found.append(f"the map is empty on {scores.unmapped / scores.pixels:.0%} of the truth")
    return found
