"""Figures of tiles as image, reference, map and errors, one tile a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsseg_cli.classes import Class
from rsseg_cli.number_format import percent
from rsseg_cli.raster.decode import Labels
from rsseg_cli.report.map_figure import Panel, class_panel, draw, errors, in_use, stretch


@dataclass(frozen=True)
class TileSample:
    """A tile with its mIoU 0..1, class indices (h, w), and image (C, h, w) of one band or three.

    Pixels of the image that are not `valid` (h, w) are missing; all are valid when None.
    """

    name: str
    score: float
    truth: Labels
    predicted: Labels
    image: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None

    def panels(self, classes: Sequence[Class]) -> list[Panel]:
        """Return its pictures; the first one has the name and the score as its title."""
        panels = []
        if self.image is not None:
            valid = self.valid if self.valid is not None else np.ones(self.truth.shape, bool)
            panels.append(Panel("image", stretch(self.image, valid)))
        panels.append(class_panel("truth", self.truth, classes))
        panels.append(class_panel("map", self.predicted, classes))
        title = f"{self.name}   mIoU {percent(self.score)}"
        return [replace(panels[0], title=title), *panels[1:], errors(self.predicted, self.truth)]


def draw_tiles(samples: Sequence[TileSample], classes: Sequence[Class]) -> Figure:
    """Draw tiles, one a row, with a legend of classes below."""
    rows = [sample.panels(classes) for sample in samples]
    shown = [labels for sample in samples for labels in (sample.truth, sample.predicted)]
    panels = [panel for row in rows for panel in row]
    return draw(panels, in_use(classes, shown), columns=max(map(len, rows)))


def subsample(planes: NDArray[Any], side: int) -> NDArray[Any]:
    """Return every n-th pixel of (..., h, w), so that no side is longer than `side`."""
    step = -(-max(planes.shape[-2:]) // side)
    return planes[..., ::step, ::step]
