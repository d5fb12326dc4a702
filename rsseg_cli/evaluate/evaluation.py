"""Counts summed over compared scenes, and their scores."""

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

MAX_BLOCK_BYTES = 2**28
"""Size of the counts of blocks after which those of further scenes are dropped."""
MAX_GROUPS = 100
"""Largest number of scenes and domains that get confidence intervals of their own."""
GALLERY_TILES = 3
"""Number of best and of worst tiles in the gallery."""

Counts: TypeAlias = NDArray[np.uint32]
"""(U, K, K + 1) pixels of U blocks by true and mapped class, the last column unmapped."""


class Gallery:
    """Tiles with the highest and with the lowest scores."""

    def __init__(self) -> None:
        self.best: list[TileSample] = []
        self.worst: list[TileSample] = []

    def add(self, score: float, load: Callable[[], TileSample]) -> None:
        """Add a tile if it is among the best or the worst; it is loaded only then."""
        incomplete = [
            (tiles, sign)
            for tiles, sign in ((self.best, -1.0), (self.worst, 1.0))
            if len(tiles) < GALLERY_TILES or sign * score < sign * tiles[-1].score
        ]
        if incomplete:
            sample = load()
            for tiles, sign in incomplete:
                tiles.append(sample)
                tiles.sort(key=lambda tile: sign * tile.score)
                del tiles[GALLERY_TILES:]

    def pictures(self, classes: Sequence[Class]) -> dict[str, Any]:
        """Return the figures by caption, each tile in one of them only."""
        best = [tile for tile in self.best if not any(tile is other for other in self.worst)]
        return {
            f"{title} tiles": draw_tiles(samples, classes)
            for title, samples in (("Worst", self.worst), ("Best", best))
            if samples
        }


@dataclass
class Evaluation:
    """Sums over compared scenes.

    Attributes:
        classes: The K classes of the indices.
        total: Confusion matrix of all scenes.
        boundary: Boundary counts of all scenes; None without boundary scores.
        mapped: (K,) pixels of the maps by class, labelled or not.
        areas_m2: (K,) area of these; None if it is unknown for a scene.
        scenes: Confusion matrix of each scene.
        domains: Confusion matrix of each domain.
        blocks: Counts of the blocks of each scene.
        domain_of: Domain of each scene that has one.
        saliency: Scores of soft maps, if any.
        code: Encoding of the reference of a single map.
        remarks: Remarks for the reader of the scores.
    """

    classes: Sequence[Class]
    total: ConfusionMatrix
    boundary: BoundaryIoU | None
    mapped: NDArray[np.int64]
    areas_m2: NDArray[np.float64] | None
    scenes: dict[str, ConfusionMatrix] = field(default_factory=dict)
    domains: dict[str, ConfusionMatrix] = field(default_factory=dict)
    blocks: dict[str, Counts] = field(default_factory=dict)
    domain_of: dict[str, str] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    gallery: Gallery = field(default_factory=Gallery)
    saliency: Saliency | None = None
    code: LabelCode | None = None
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, classes: Sequence[Class], *, boundary_px: int | None) -> Evaluation:
        """Return an evaluation without counts; `boundary_px` None omits the boundary scores."""
        boundary = BoundaryIoU(classes, distance=boundary_px) if boundary_px else None
        mapped = np.zeros(len(classes), np.int64)
        return cls(classes, ConfusionMatrix(classes), boundary, mapped, mapped.astype(np.float64))

    def add(self, name: str, domain: str | None, blocks: Sequence[ConfusionMatrix]) -> None:
        """Add the counts of blocks of the scene `name`."""
        if not blocks:
            return
        counts = np.stack([block.counts for block in blocks])
        matrix = ConfusionMatrix(self.classes, counts.sum(0))
        self.total += matrix
        for groups, key in ((self.scenes, name), (self.domains, domain)):
            if key is not None:
                groups[key] = groups.get(key, ConfusionMatrix(self.classes)) + matrix
        if domain is not None:
            self.domain_of[name] = domain
        if sum(block.nbytes for block in self.blocks.values()) < MAX_BLOCK_BYTES:
            labelled = counts[counts.any((1, 2))].astype(np.uint32)
            earlier = [self.blocks[name]] if name in self.blocks else []
            self.blocks[name] = np.concatenate([*earlier, labelled])

    def add_mapped(self, pixels: NDArray[np.int64], areas_m2: NDArray[np.float64] | None) -> None:
        """Add the pixels (K,) of a map by class, and their areas (K,) if known."""
        self.mapped += pixels
        if self.areas_m2 is None or areas_m2 is None or not np.isfinite(areas_m2).all():
            self.areas_m2 = None
        else:
            self.areas_m2 += areas_m2

    def units(self, scenes: Sequence[str]) -> Units | None:
        """Return the units to resample for the confidence intervals of some scenes."""
        counts = [self.scenes[name].counts for name in scenes]
        complete = all(name in self.blocks for name in scenes)
        blocks = [block for name in scenes for block in self.blocks[name]] if complete else []
        return Units.choose(counts, blocks)

    def scores(self) -> Scores:
        """Return the scores, in groups by domain, or by scene if no scene has a domain."""
        few = len(self.scenes) + len(self.domains) <= MAX_GROUPS

        def group(matrix: ConfusionMatrix, scenes: Sequence[str]) -> Scores:
            return _with_intervals(matrix, self.units(scenes) if few else None)

        scenes = {name: group(matrix, [name]) for name, matrix in self.scenes.items()}
        domains = {
            domain: group(matrix, [name for name, own in self.domain_of.items() if own == domain])
            for domain, matrix in self.domains.items()
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
                areas_m2=self.areas_m2,
            ),
        )
        return self.boundary.add_to(scores) if self.boundary else scores

    def report(self, title: str, **attributes: Any) -> Report:
        """Return a report of the scores; `attributes` are further attributes of `Report`."""
        pictures = {**attributes.pop("pictures", {}), **self.gallery.pictures(self.classes)}
        return Report(
            title, self.scores(), remarks=tuple(self.remarks), pictures=pictures, **attributes
        )


def _with_intervals(matrix: ConfusionMatrix, units: Units | None) -> Scores:
    return replace(matrix.scores(), intervals=None if units is None else intervals(units))
