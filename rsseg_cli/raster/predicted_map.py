"""Maps of class ids, as `rsseg predict` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.raster.decode import LabelCode, Labels, decode
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
            side: Longest side in pixels after downsampling; None: full resolution.

        Raises:
            UnreadableError: The file is missing or broken.
            RssegError: The file does not have one band of integers.
        """
        scene = Scene.open(path, warn=False)
        # A nodata value that is the id of a class means that class.
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
        return cls(scene if side is None else scene.downsampled(side), classes)

    def read(self, window: Window | None = None) -> Labels:
        """Read class indices (h, w) of a window, or of the whole map.

        They are `IGNORE` outside the map and where it is empty.

        Raises:
            RssegError: The map holds ids that are not classes.
        """
        window = window or Window(0, 0, self.scene.width, self.scene.height)
        return decode(*self.scene.read(window), self._code, where=self.scene.path)

    def __enter__(self) -> PredictedMap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.scene.close()
