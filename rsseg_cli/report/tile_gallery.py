"""Tiles shown as image, truth, map and errors, one tile a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsseg_cli.classes import Class
from rsseg_cli.raster.decode import Labels
from rsseg_cli.report.class_id_labels import marks
from rsseg_cli.report.map_figure import Panel, draw, errors, in_use, paint, stretch


@dataclass(frozen=True)
class Sample:
    """One tile.

    Attributes:
        name: Where it is.
        score: Its mIoU, 0..1.
        truth: (h, w) class indices.
        predicted: (h, w) class indices.
        image: (C, h, w), one band or three; None where there is no image.
        valid: (h, w) pixels of the image that are there; None: all.
    """

    name: str
    score: float
    truth: Labels
    predicted: Labels
    image: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None

    def panels(self, classes: Sequence[Class]) -> list[Panel]:
        """Draw it."""
        found = []
        if self.image is not None:
            there = self.valid if self.valid is not None else np.ones(self.truth.shape, bool)
            found.append(Panel("image", stretch(self.image, there)))
        found += [
            Panel(title, paint(labels, classes), marks=marks(labels, classes))
            for title, labels in (("truth", self.truth), ("map", self.predicted))
        ]
        return [*found, errors(self.predicted, self.truth)]


def draw_samples(samples: Sequence[Sample], classes: Sequence[Class]) -> Figure:
    """Draw tiles, one a row, each with its name and score, and a legend of classes below."""
    rows = [sample.panels(classes) for sample in samples]
    columns = max(len(row) for row in rows)
    first = [
        Panel(f"{sample.name}   mIoU {100 * sample.score:.1f}", *_rest(row[0]))
        for sample, row in zip(samples, rows, strict=True)
    ]
    panels = [panel for head, row in zip(first, rows, strict=True) for panel in (head, *row[1:])]
    shown = [labels for sample in samples for labels in (sample.truth, sample.predicted)]
    return draw(panels, in_use(classes, shown), columns=columns)


def _rest(panel: Panel) -> tuple[Any, ...]:
    return panel.pixels, panel.key, panel.marks


def shrink(planes: NDArray[Any], side: int) -> NDArray[Any]:
    """Take every n-th pixel of (..., h, w), so that no side is longer than `side`."""
    step = -(-max(planes.shape[-2:]) // side)
    return planes[..., ::step, ::step]
