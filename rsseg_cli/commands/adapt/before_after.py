"""Maps the middle of a target scene before and after an adaptation, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from rsseg_cli.classes import Class
from rsseg_cli.commands.adapt.targets import Targets
from rsseg_cli.commands.fit.final_evaluation import shown_bands
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.predicted_map import PredictedMap
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.map_figure import Panel, draw, paint, stretch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision

TILES = 4
"""Side of the mapped window in tiles."""


@dataclass(frozen=True)
class BeforeAfterMap:
    """Maps of the middle of a scene.

    Attributes:
        folder: Folder of the two maps.
        bands: The model's bands in the unit of the scene.
        tile: Side of a tile in pixels.
        unit_scale: Factor from stored values to the model's unit.
    """

    folder: Path
    opener: Opener
    pair: Pair
    bands: Bands
    classes: Sequence[Class]
    tile: int
    unit_scale: float
    precision: Precision

    @classmethod
    def of(
        cls,
        folder: Path,
        targets: Targets,
        bands: Bands,
        classes: Sequence[Class],
        *,
        tile: int,
        precision: Precision,
    ) -> BeforeAfterMap:
        """Select the largest scene of the targets; `bands` are the model's."""
        pairs = [(opener, pair) for opener, pairs in targets.train for pair in pairs]
        opener, pair = max(pairs, key=lambda entry: entry[1].info.width * entry[1].info.height)
        bands, unit_scale = targets.bands(bands), targets.unit_scale
        return cls(folder, opener, pair, bands, classes, tile, unit_scale, precision)

    @property
    def before(self) -> Path:
        """Map of the model before its training."""
        return self.folder / "before.tif"

    @property
    def after(self) -> Path:
        """Map of the adapted model."""
        return self.folder / "after.tif"

    @property
    def window(self) -> Window:
        """The middle of the scene."""
        info, side = self.pair.info, TILES * self.tile
        width, height = min(side, info.width), min(side, info.height)
        return Window((info.width - width) // 2, (info.height - height) // 2, width, height)

    def write(self, model: Segmenter, path: Path) -> None:
        """Write a map of the window; the model is left in eval mode."""
        model.eval()
        side = -(-self.tile // model.multiple) * model.multiple
        tiling = Tiling(tile=side, batch=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        outputs = Outputs(path, self.classes, driver="GTiff", overwrite=True)

        def infer(tiles: Tensor) -> Tensor:
            with torch.inference_mode(), self.precision.autocast():
                return model.infer(tiles if self.unit_scale == 1.0 else tiles * self.unit_scale)

        with self._open() as scene:
            predict_scene(SceneTask(scene, infer, outputs, tiling, self.precision.device))

    def _open(self) -> Scene:
        """Open the window as a scene."""
        x, y = self.opener.reader.box[:2] if self.opener.reader.box else (0, 0)
        window = self.window.shift(x, y)
        box = (window.x, window.y, window.right, window.bottom)
        reader = self.opener.reader.model_copy(update={"box": box})
        return replace(self.opener, reader=reader).scene(self.pair.image, fill=self.bands.mean)

    def draw(self) -> Figure:
        """Draw the image and both maps."""
        with self._open() as scene:
            samples, valid = scene.read(Window(0, 0, scene.width, scene.height))
        panels = [Panel("image", stretch(samples[list(shown_bands(self.bands))], valid))]
        for path in (self.before, self.after):
            with PredictedMap.open(path, self.classes) as mapped:
                panels.append(Panel(path.stem, paint(mapped.read(), self.classes)))
        return draw(panels, self.classes, title=self.pair.name)
