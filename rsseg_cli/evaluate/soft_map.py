"""Reads soft maps of one kind of object, as shares and as the two classes they stand for."""

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
from rsseg_cli.evaluate.reference import Truth
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.scene import Scene
from rsseg_cli.words import counted

if TYPE_CHECKING:
    from rsseg_cli.metrics.saliency import Saliency

IMAGE = 2048
"""A map up to so many pixels a side is one image of the scores; larger ones are cut into some."""


def is_soft(path: Path) -> bool:
    """Tell whether a map says by itself that it holds shares: floats, or bytes with a scale."""
    with Scene.open(path, warn=False) as scene:  # says what is wrong with a file that is none
        return scene.count == 1 and (scene.dtype.startswith("float") or _scale(scene) != 1.0)


def _scale(scene: Scene) -> float:
    with rasterio.open(scene.path) as file:
        return float(file.scales[0])


@dataclass
class SoftMap:
    """A map of the share of one kind of object: floats 0..1, or bytes times a scale.

    Attributes:
        place: The map.
        scale: Share = stored value * scale.
    """

    place: Scene
    scale: float

    @classmethod
    def open(cls, path: Path, classes: Sequence[Class]) -> SoftMap:
        """Open a map; bytes without a scale in the file are 255ths.

        Raises:
            RssegError: There are not two classes, or more bands than one.
        """
        if len(classes) != 2:
            raise RssegError(
                "a soft map tells one object from the rest: it cannot show "
                f"{counted(len(classes), 'class')}",
                where=str(path),
                fix="--classes with a list of two, the object last; or a map of integer ids",
            )
        scene = Scene.open(path, warn=False)
        if scene.count != 1 or not (scene.dtype == "uint8" or scene.dtype.startswith("float")):
            scene.close()
            raise RssegError(
                f"{scene.dtype} in {counted(scene.count, 'band')} is no soft map",
                where=str(path),
                fix="one band: probabilities, or uint8 with their scale in the file",
            )
        scale = _scale(scene)
        return cls(scene, 1 / 255 if scene.dtype == "uint8" and scale == 1.0 else scale)

    def shares(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read shares (h, w), 0 where nothing is mapped, and where something is (h, w)."""
        samples, valid = self.place.read(window)
        share = np.where(valid, samples[0] * self.scale, 0.0)
        if not (share.min() >= 0 and share.max() <= 1 + 1e-6):
            raise RssegError(
                f"the soft map holds {share.min():g} to {share.max():g}, not shares 0 to 1",
                where=self.place.path,
                fix="probabilities, or uint8 with their scale in the file",
            )
        return share.clip(0.0, 1.0), valid

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w): 1 where the share is above one half."""
        share, valid = self.shares(window)
        found: Labels = np.where(valid, share > 0.5, IGNORE).astype(np.uint8)
        return found

    def score(self, truth: Truth, regions: Sequence[Window], into: Saliency) -> None:
        """Add each image of some regions to the scores of soft maps.

        Args:
            truth: Index 1 is the object.
            regions: Disjoint windows of the map.
            into: What it is added to.
        """
        for region in regions:
            for part in blocks(region.width, region.height, (IMAGE, IMAGE)):
                window = part.shift(region.x, region.y)
                share, valid = self.shares(window)
                true = truth.read(window)
                true[~valid] = IGNORE
                into.update(share, true)

    def close(self) -> None:
        """Close the file."""
        self.place.close()
