"""Compares a soft map of one kind of object with the truth, tile by tile."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import rasterio

from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.evaluate.truth import open_truth
from rsseg_cli.metrics.saliency import Saliency
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.raster.grid import blocks
from rsseg_cli.raster.labels import open_quietly


def evaluate_soft(
    soft: str | PathLike[str],
    truth: str | PathLike[str],
    code: LabelCode,
    *,
    align: bool = False,
    tile: int = 512,
    into: Saliency | None = None,
) -> Saliency:
    """Score a map of object shares; every tile of it counts as one image.

    Args:
        soft: One band, floats 0..1 or uint8 with a scale in the file (1/255 when it has none).
        truth: A raster on the same grid, or polygons in any CRS.
        code: How the truth says its two classes; the second one is the object.
        align: Resample a truth on another grid, nearest neighbour.
        tile: Side of a tile in pixels. A map that is smaller is one image.
        into: Scores to go on with, so that several maps are averaged together.

    Raises:
        RssegError: Not two classes, other grids, or values that are no shares.
    """
    if len(code.classes) != 2:
        raise RssegError(
            f"a soft map tells one object from the rest, but there are {len(code.classes)} classes",
            where=str(soft),
            fix="a class list of two: what is not the object, and the object",
        )
    scores = into or Saliency(stretch=False)
    scale = _scale(Path(soft))
    with open_quietly(soft) as scene:
        labels = open_truth(Path(truth), code, scene, align=align)
        try:
            for window in blocks(scene.width, scene.height, (tile, tile)):
                samples, valid = scene.read(window)
                true = labels.read(window)
                true[~valid] = IGNORE
                share = np.where(valid, samples[0] * scale, 0.0)
                if not (share.min() >= 0 and share.max() <= 1 + 1e-6):
                    raise RssegError(
                        f"the soft map holds {share.min():g} to {share.max():g}, not shares 0 to 1",
                        where=str(soft),
                        fix="probabilities, or uint8 with their scale in the file",
                    )
                scores.update(share.clip(0.0, 1.0), true)
        finally:
            labels.close()
    return scores


def _scale(path: Path) -> float:
    """Read what stored values are multiplied with to give shares."""
    try:
        with rasterio.open(path) as file:
            stored, scale = file.dtypes[0], float(file.scales[0])
    except rasterio.errors.RasterioError as error:
        raise UnreadableError(f"the soft map cannot be read: {error}", where=str(path)) from error
    return 1 / 255 if stored == "uint8" and scale == 1.0 else scale
