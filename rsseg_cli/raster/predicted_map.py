"""Reads maps of class ids, as `rsseg predict` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted, listed
from rsseg_cli.raster.decode import LabelCode, Labels, decode_ids
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene


class PredictedMap:
    """A map of class ids that is read as class indices.

    Attributes:
        scene: The file.
    """

    def __init__(self, scene: Scene, classes: Sequence[Class]) -> None:
        self.scene = scene
        self._code = LabelCode(tuple(classes), ignore=(IGNORE,))

    @classmethod
    def open(
        cls, path: str | PathLike[str], classes: Sequence[Class], *, side: int | None = None
    ) -> PredictedMap:
        """Open a map.

        Args:
            path: The raster.
            classes: The classes of the ids.
            side: Longest side in pixels that it is read at; None: full resolution.

        Raises:
            UnreadableError: The file is missing or broken.
            RssegError: It is not one band of integers.
        """
        scene = Scene.open(path, warn=False)
        # A class whose id equals the nodata value is a class.
        if scene.nodata in {cls.id for cls in classes}:
            scene.close()
            scene = Scene.open(path, nodata=float("nan"), warn=False)
        if scene.count != 1 or scene.dtype.startswith("float"):
            scene.close()
            raise RssegError(
                f"{scene.dtype} in {counted(scene.count, 'band')} is not a map of class ids",
                where=scene.path,
                fix="one band of integers, as `rsseg predict` writes it",
            )
        return cls(scene if side is None else scene.shrunk(side), classes)

    def read(self, window: Window | None = None) -> Labels:
        """Read class indices (h, w); `IGNORE` outside the scene and where the map is empty.

        Args:
            window: Pixels of the map; None for all.

        Raises:
            RssegError: The map holds ids of no class.
        """
        samples, valid = self.scene.read(window or self.extent)
        labels, unknown = decode_ids(samples[0], self._code)
        labels[~valid] = IGNORE
        if (unknown & valid).any():
            ids = np.unique(samples[0][unknown & valid]).tolist()
            known = ", ".join(f"{cls.id} {cls.name}" for cls in self._code.classes)
            raise RssegError(
                f"the map holds ids of no class: {listed(ids, 10)}",
                where=self.scene.path,
                fix=f"the class list of the map (known: {known})",
            )
        return labels

    @property
    def extent(self) -> Window:
        """The whole map."""
        return Window(0, 0, self.scene.width, self.scene.height)

    def __enter__(self) -> PredictedMap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.scene.close()
