"""Sums over compared scenes, and the scores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import Class
from rsseg_cli.metrics.area import estimate_area
from rsseg_cli.metrics.bootstrap import Units, intervals
from rsseg_cli.metrics.boundary import BoundaryIoU
from rsseg_cli.metrics.calibration import Calibration
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.report.report import Report
from rsseg_cli.report.tile_gallery import TileSample, draw_tiles

if TYPE_CHECKING:
    from rsseg_cli.metrics.saliency import Saliency

KEPT = 2**28
"""Limit in bytes for the counts of blocks; those of later scenes are not kept."""
MOST_PARTS = 100
"""Largest number of scenes and domains that get intervals of their own."""
SHOWN = 3
"""Number of best and of worst tiles in the gallery."""

Counts: TypeAlias = NDArray[np.uint32]
"""(U, K, K + 1) pixels by true and mapped class of U blocks."""


class Gallery:
    """The tiles with the highest and those with the lowest score."""

    def __init__(self) -> None:
        self.best: list[TileSample] = []
        self.worst: list[TileSample] = []

    def consider(self, score: float, load: Callable[[], TileSample]) -> None:
        """Add a tile if it is among the best or the worst; only then is it loaded."""
        lists = (self.best, -1.0), (self.worst, 1.0)
        open_lists = [
            (kept, sign)
            for kept, sign in lists
            if len(kept) < SHOWN or sign * score < sign * kept[-1].score
        ]
        if open_lists:
            sample = load()
            for kept, sign in open_lists:
                kept.append(sample)
                kept.sort(key=lambda tile: sign * tile.score)
                del kept[SHOWN:]

    def pictures(self, classes: Sequence[Class]) -> dict[str, Any]:
        """Return a figure by caption; no tile is among both the best and the worst."""
        worst = self.worst
        best = [tile for tile in self.best if not any(tile is other for other in worst)]
        return {
            f"{title} tiles": draw_tiles(samples, classes)
            for title, samples in (("Worst", worst), ("Best", best))
            if samples
        }


@dataclass
class Evaluation:
    """Sums over compared scenes.

    Attributes:
        classes: The K classes, in the order of the indices.
        total: Confusion matrix over all scenes.
        boundary: Outlines over all scenes; None without boundary scores.
        scenes: Confusion matrix of each scene.
        domains: Confusion matrix of each domain.
        blocks: Counts of each block of a scene, by scene.
        domain_of: Domain of each scene that has one.
        mapped: (K,) pixels of the maps by class, labelled or not.
        hectares: Mapped area; None once the area of a scene is unknown.
        calibration: Confidence and accuracy over all scenes.
        gallery: The best and the worst tiles.
        saliency: Scores of soft maps, if there are any.
        code: Encoding of the reference of a single map.
        remarks: What a reader of the scores should know.
    """

    classes: Sequence[Class]
    total: ConfusionMatrix
    boundary: BoundaryIoU | None
    mapped: NDArray[np.int64]
    scenes: dict[str, ConfusionMatrix] = field(default_factory=dict)
    domains: dict[str, ConfusionMatrix] = field(default_factory=dict)
    blocks: dict[str, Counts] = field(default_factory=dict)
    domain_of: dict[str, str] = field(default_factory=dict)
    hectares: float | None = 0.0
    calibration: Calibration = field(default_factory=Calibration)
    gallery: Gallery = field(default_factory=Gallery)
    saliency: Saliency | None = None
    code: LabelCode | None = None
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, classes: Sequence[Class], *, boundary_px: int | None) -> Evaluation:
        """Return an evaluation without any counts."""
        boundary = BoundaryIoU(classes, distance=boundary_px) if boundary_px else None
        return cls(classes, ConfusionMatrix(classes), boundary, np.zeros(len(classes), np.int64))

    def add(self, name: str, domain: str | None, blocks: Sequence[ConfusionMatrix]) -> None:
        """Add the counts of some blocks of a scene.

        Args:
            name: Name of the scene.
            domain: Its domain, if any.
            blocks: Confusion matrix of each block.
        """
        if not blocks:
            return
        counts = np.stack([block.counts for block in blocks])
        matrix = ConfusionMatrix(self.classes, counts.sum(0))
        self.total += matrix
        for parts, key in ((self.scenes, name), (self.domains, domain)):
            if key is not None:
                parts[key] = parts.get(key, ConfusionMatrix(self.classes)) + matrix
        if domain is not None:
            self.domain_of[name] = domain
        if sum(block.nbytes for block in self.blocks.values()) < KEPT:
            labelled = counts[counts.any((1, 2))].astype(np.uint32)
            before = self.blocks.get(name)
            self.blocks[name] = labelled if before is None else np.concatenate([before, labelled])

    def add_mapped(self, pixels: NDArray[np.int64], hectares: float | None) -> None:
        """Add the pixels of a map, labelled or not.

        Args:
            pixels: (K,) by class.
            hectares: Area of a pixel; None if unknown.
        """
        self.mapped += pixels
        if self.hectares is not None:
            area = None if hectares is None else float(pixels.sum()) * hectares
            self.hectares = None if area is None else self.hectares + area

    def units(self, scenes: Sequence[str]) -> Units | None:
        """Return the units that are resampled for the intervals of some scenes."""
        whole = [self.scenes[name].counts for name in scenes]
        complete = all(name in self.blocks for name in scenes)
        blocks = [block for name in scenes for block in self.blocks[name]] if complete else []
        return Units.choose(whole, blocks)

    def scores(self) -> Scores:
        """Return the scores, with the domains as groups, or the scenes where there are none."""
        few = len(self.scenes) + len(self.domains) <= MOST_PARTS
        scenes = {
            name: _with_intervals(matrix, self.units([name]) if few else None)
            for name, matrix in self.scenes.items()
        }
        domains = {
            name: _with_intervals(matrix, self.units(self._scenes_of(name)) if few else None)
            for name, matrix in self.domains.items()
        }
        groups = domains or (scenes if len(scenes) > 1 else {})
        units = self.units(list(self.scenes))
        scores = replace(
            _with_intervals(self.total, units),
            groups=groups,
            scenes=scenes,
            saliency=None if self.saliency is None else self.saliency.scores(),
            calibration=self.calibration.reliability(),
            area=estimate_area(
                self.classes,
                self.total.counts[:, :-1],
                self.mapped,
                units=units,
                hectares=self.hectares or None,
            ),
        )
        return self.boundary.add_to(scores) if self.boundary else scores

    def _scenes_of(self, domain: str) -> list[str]:
        return [name for name, of_scene in self.domain_of.items() if of_scene == domain]

    def report(self, title: str, **more: Any) -> Report:
        """Return a report of the scores; `more` are further attributes of `Report`."""
        pictures = {**more.pop("pictures", {}), **self.gallery.pictures(self.classes)}
        return Report(title, self.scores(), remarks=tuple(self.remarks), pictures=pictures, **more)


def _with_intervals(matrix: ConfusionMatrix, units: Units | None) -> Scores:
    return replace(matrix.scores(), intervals=None if units is None else intervals(units))
