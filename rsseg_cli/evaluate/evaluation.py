"""What comparisons add up to, and the scores of it all."""

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
from rsseg_cli.report.tile_gallery import Sample, draw_samples

if TYPE_CHECKING:
    from rsseg_cli.metrics.saliency import Saliency

KEPT = 2**28
"""Bytes of counts per block that are kept; the blocks of later scenes are not."""
MOST_PARTS = 100
"""Scenes and domains get intervals of their own up to this number of them."""
SHOWN = 3
"""Best and worst tiles that are shown."""

Counts: TypeAlias = NDArray[np.uint32]
"""(U, K, K + 1) pixels by true and mapped class of U blocks."""


class Gallery:
    """Keeps the tiles with the highest and those with the lowest score."""

    def __init__(self) -> None:
        self.best: list[Sample] = []
        self.worst: list[Sample] = []

    def consider(self, score: float, load: Callable[[], Sample]) -> None:
        """Offer a tile; it is loaded only if it is kept."""
        lists = (self.best, -1.0), (self.worst, 1.0)
        wanted = [
            (kept, sign)
            for kept, sign in lists
            if len(kept) < SHOWN or sign * score < sign * kept[-1].score
        ]
        if wanted:
            sample = load()
            for kept, sign in wanted:
                kept.append(sample)
                kept.sort(key=lambda one: sign * one.score)
                del kept[SHOWN:]

    def pictures(self, classes: Sequence[Class]) -> dict[str, Any]:
        """Draw what was kept: caption to figure. A tile is not both best and worst."""
        worst = self.worst
        best = [one for one in self.best if not any(one is other for other in worst)]
        return {
            f"{title} tiles": draw_samples(samples, classes)
            for title, samples in (("Worst", worst), ("Best", best))
            if samples
        }


@dataclass
class Evaluation:
    """What comparisons add up to.

    Attributes:
        classes: The K classes, in the order of the indices.
        total: Counts over everything.
        boundary: Outlines over everything; None when they were not asked for.
        scenes: Counts per scene.
        domains: Counts per domain.
        blocks: Counts per block of ground, by scene.
        domain_of: Domain of each scene that has one.
        mapped: (K,) pixels of the maps by class, with or without truth.
        hectares: Mapped ground; None once that of a scene is not known.
        calibration: How sure the model was, and how often right.
        gallery: The best and the worst tiles.
        saliency: Scores of soft maps, where there are some.
        code: How the truth of a single map is written.
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
        """Begin with nothing counted."""
        boundary = BoundaryIoU(classes, distance=boundary_px) if boundary_px else None
        return cls(classes, ConfusionMatrix(classes), boundary, np.zeros(len(classes), np.int64))

    def add(self, name: str, domain: str | None, blocks: Sequence[ConfusionMatrix]) -> None:
        """Add the counts of a scene, or of more of it."""
        if not blocks:
            return
        counts = np.stack([one.counts for one in blocks])
        matrix = ConfusionMatrix(self.classes, counts.sum(0))
        self.total += matrix
        for parts, key in ((self.scenes, name), (self.domains, domain)):
            if key is not None:
                parts[key] = parts.get(key, ConfusionMatrix(self.classes)) + matrix
        if domain is not None:
            self.domain_of[name] = domain
        if sum(one.nbytes for one in self.blocks.values()) < KEPT:
            labelled = counts[counts.any((1, 2))].astype(np.uint32)
            before = self.blocks.get(name)
            self.blocks[name] = labelled if before is None else np.concatenate([before, labelled])

    def add_mapped(self, pixels: NDArray[np.int64], hectares: float | None) -> None:
        """Add what a map says, with or without truth.

        Args:
            pixels: (K,) by class.
            hectares: Ground of a pixel.
        """
        self.mapped += pixels
        if self.hectares is not None:
            ground = None if hectares is None else float(pixels.sum()) * hectares
            self.hectares = None if ground is None else self.hectares + ground

    def units(self, scenes: Sequence[str]) -> Units | None:
        """Choose what is resampled for the intervals of some scenes."""
        whole = [self.scenes[name].counts for name in scenes]
        complete = all(name in self.blocks for name in scenes)
        blocks = [one for name in scenes for one in self.blocks[name]] if complete else []
        return Units.choose(whole, blocks)

    def scores(self) -> Scores:
        """Give the scores, with those of the domains, or else of the scenes, as groups."""
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
        found = replace(
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
        return self.boundary.add_to(found) if self.boundary else found

    def _scenes_of(self, domain: str) -> list[str]:
        return [name for name, own in self.domain_of.items() if own == domain]

    def report(self, title: str, **more: Any) -> Report:
        """Make a report of the scores; `more` are further attributes of `Report`."""
        pictures = {**more.pop("pictures", {}), **self.gallery.pictures(self.classes)}
        return Report(title, self.scores(), remarks=tuple(self.remarks), pictures=pictures, **more)


def _with_intervals(matrix: ConfusionMatrix, units: Units | None) -> Scores:
    return replace(matrix.scores(), intervals=None if units is None else intervals(units))
