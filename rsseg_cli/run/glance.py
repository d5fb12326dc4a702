"""Maps a piece of a target scene, for a picture of before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rsseg_cli.bands import Bands
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.pair import Opener, Pair, Part
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.pictures import Panel, draw, paint, stretch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision

TILES = 4
"""Side of the piece in tiles."""


@dataclass(frozen=True)
class Glance:
    """A piece of a scene.

    Attributes:
        opener: How the scene is opened.
        pair: The scene.
        bands: The model's bands, in the unit of the scene.
        classes: What indices mean.
        tile: Side of a tile in pixels.
        gain: Factor from stored values to the model's unit.
        precision: Autocast of the forward pass.
    """

    opener: Opener
    pair: Pair
    bands: Bands
    classes: Sequence[Class]
    tile: int
    gain: float
    precision: Precision

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        bands: Bands,
        classes: Sequence[Class],
        *,
        tile: int,
        gain: float,
        precision: Precision,
    ) -> Glance:
        """Look at the largest scene."""
        pairs = [(opener, pair) for opener, pairs in parts for pair in pairs]
        opener, pair = max(pairs, key=lambda one: one[1].place.width * one[1].place.height)
        return cls(opener, pair, bands, classes, tile, gain, precision)

    @property
    def window(self) -> Window:
        """The middle of the scene."""
        place, side = self.pair.place, TILES * self.tile
        width, height = min(side, place.width), min(side, place.height)
        return Window((place.width - width) // 2, (place.height - height) // 2, width, height)

    def map(self, model: Segmenter, path: Path) -> None:
        """Write a map of the piece; the model is left in eval mode."""
        model.eval()
        side = -(-self.tile // model.multiple) * model.multiple
        tiling = Tiling(tile=side, batch=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        outputs = Outputs(path, self.classes, driver="GTiff", overwrite=True)

        def infer(tiles: Tensor) -> Tensor:
            with torch.inference_mode(), self.precision.autocast():
                return model.infer(tiles if self.gain == 1.0 else tiles * self.gain)

        with self._open() as scene:
            predict_scene(SceneTask(scene, infer, outputs, tiling, self.precision.device))

    def _open(self) -> Scene:
        """Open the piece as if it were a scene."""
        x, y = self.opener.reader.box[:2] if self.opener.reader.box else (0, 0)
        part = self.window.shift(x, y)
        box = (part.x, part.y, part.right, part.bottom)
        reader = self.opener.reader.model_copy(update={"box": box})
        return replace(self.opener, reader=reader).scene(self.pair.image, fill=self.bands.mean)

    def draw(self, before: Path, after: Path) -> Figure:
        """Draw the image and two maps of it."""
        with self._open() as scene:
            samples, valid = scene.read(Window(0, 0, scene.width, scene.height))
        shown = list(self.bands.rgb() or range(min(3, len(samples))))
        shown = shown if len(shown) == 3 else shown[:1]
        panels = [Panel("image", stretch(samples[shown], valid))]
        table = torch.full((256,), IGNORE, dtype=torch.uint8).numpy()
        for index, one in enumerate(self.classes):
            table[one.id] = index
        for name, path in (("before", before), ("after", after)):
            with rasterio.open(path) as file:
                panels.append(Panel(name, paint(table[file.read(1)], self.classes)))
        return draw(panels, self.classes, title=self.pair.name)
