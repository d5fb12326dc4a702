"""Soft maps: probabilities of one kind of object, read as such or as two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import LabelReader
from rsseg_cli.raster.scene import Scene

if TYPE_CHECKING:
    from rsseg_cli.metrics.saliency import Saliency

IMAGE_PX = 2048
"""Largest side of an image; larger maps are scored as several images."""


def is_soft(path: Path) -> bool:
    """Return whether a map holds probabilities: floats, or integers with a scale factor."""
    with Scene.open(path, warn=False) as scene:  # raises UnreadableError for a broken file
        return scene.count == 1 and (scene.dtype.startswith("float") or _scale(scene) != 1.0)


def _scale(scene: Scene) -> float:
    with rasterio.open(scene.path) as file:
        return float(file.scales[0])


@dataclass
class SoftMap:
    """A map of the probability of the second of two classes.

    Attributes:
        scene: The file.
        scale: Probability per unit of the stored values.
    """

    scene: Scene
    scale: float

    @classmethod
    def open(cls, path: Path, classes: Sequence[Class]) -> SoftMap:
        """Open a map; uint8 without a scale factor in the file is scaled by 1/255.

        Raises:
            RssegError: There are not two classes, or the file does not have one band of floats or
                uint8.
        """
        if len(classes) != 2:
            raise RssegError(
                f"a soft map needs two classes, not {len(classes)}",
                where=str(path),
                fix="--classes with a list of two, the object last; or a map of integer ids",
            )
        scene = Scene.open(path, warn=False)
        if scene.count != 1 or not (scene.dtype == "uint8" or scene.dtype.startswith("float")):
            scene.close()
            raise RssegError(
                f"{scene.dtype} in {counted(scene.count, 'band')} is not a soft map",
                where=str(path),
                fix="one band: floats 0..1, or uint8 with a scale factor in the file",
            )
        scale = _scale(scene)
        return cls(scene, 1 / 255 if scene.dtype == "uint8" and scale == 1.0 else scale)

    def probabilities(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read probabilities (h, w), 0 where the map is empty, and valid pixels (h, w).

        Raises:
            RssegError: A value is outside 0..1.
        """
        samples, valid = self.scene.read(window)
        values = np.where(valid, samples[0] * self.scale, 0.0)
        if not (values.min() >= 0 and values.max() <= 1 + 1e-6):
            raise RssegError(
                f"the soft map holds {values.min():g} to {values.max():g}, not probabilities",
                where=self.scene.path,
                fix="floats 0..1, or uint8 with a scale factor in the file",
            )
        return values.clip(0.0, 1.0), valid

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w): 1 where the probability is above 0.5."""
        values, valid = self.probabilities(window)
        labels: Labels = np.where(valid, values > 0.5, IGNORE).astype(np.uint8)
        return labels

    def score(self, truth: LabelReader, regions: Sequence[Window], total: Saliency) -> None:
        """Add disjoint windows of the map to scores; index 1 of the reference is the object."""
        for region in regions:
            for part in blocks(region.width, region.height, (IMAGE_PX, IMAGE_PX)):
                window = part.shift(region.x, region.y)
                values, valid = self.probabilities(window)
                total.update(values, np.where(valid, truth.read(window), IGNORE))

    def __enter__(self) -> SoftMap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.scene.close()
