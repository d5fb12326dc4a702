"""Evaluates a model on labelled datasets."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import torch

from rsseg_cli import distributed
from rsseg_cli.classes import Class
from rsseg_cli.commands.evaluate.band_matching import match_bands, require_band_count, unit_scale
from rsseg_cli.commands.evaluate.class_matching import MergedInfer, reconcile
from rsseg_cli.commands.fit.final_evaluation import shown_bands
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.commands.model import LoadedModel, open_model, pick_device
from rsseg_cli.commands.predict.progress import ProgressLine
from rsseg_cli.commands.predict.scene_predictor import ModelInfer, tiling_for
from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.class_map import Merge
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.evaluate.rasters import BOUNDARY_PX, Comparison, evaluate_scenes
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import Infer, SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.labels import LabelReader, RasterGrid
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.report import Report


def evaluate_model(
    path: Path | None,
    on: Sequence[str],
    *,
    data_root: Path | None = None,
    class_map: str | None = None,
    by_position: bool = False,
    weights: Path | None = None,
    overlap: float = 0.25,
    boundary_px: int | None = BOUNDARY_PX,
    device: str = "auto",
    quiet: bool = False,
) -> Report:
    """Map all scenes of some datasets with a model, and score the maps on the labelled pixels.

    Each of several processes maps another scene; the first one scores all maps.

    Args:
        path: Run folder or model file; the newest finished run when None.
        on: `DATASET[:split[:domain]]`, one or more.
        data_root: Folder of the dataset presets.
        class_map: Map between the classes of the model and those of the datasets.
        by_position: Match bands by position, not by name and wavelength.
        weights: Weights file of the backbone, if it has moved.
        overlap: Overlap of neighbouring tiles as a fraction of a tile, 0..0.5.
        boundary_px: Width of the outlines that are compared; None leaves them out.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress.

    Raises:
        RssegError: The classes or bands of a dataset are not the model's.
    """
    torch_device = pick_device(device)
    loaded = open_model(path, weights=weights)
    # With the fit's fraction, `DIR:val` is its validation set.
    val_fraction = loaded.config.data.val_fraction
    sources, merge = _match_classes(
        loaded,
        [Source.locate(text, data_root=data_root, holdout=val_fraction) for text in on],
        class_map,
    )
    classes = loaded.classes if merge is None else list(merge.classes)
    tiling = tiling_for(loaded, torch_device, tile=None, overlap=overlap, batch=None)
    progress = ProgressLine(quiet=quiet or not distributed.is_main())
    progress.print(f"model    {loaded.describe()}")
    with _shared_folder() as folder:
        maps = _Maps(loaded, tiling, torch_device, folder, progress, merge, by_position)
        comparisons = (comparison for source in sources for comparison in maps.of(source))
        if distributed.is_main():
            evaluation = evaluate_scenes(comparisons, classes, boundary_px=boundary_px)
        else:
            evaluation = Evaluation.empty(classes, boundary_px=None)
            deque(comparisons, maxlen=0)  # yields nothing, but makes this process' maps
        evaluation = distributed.gather(evaluation)[0]
    return evaluation.report(
        f"{loaded.name} on {', '.join(on)}",
        subtitle=loaded.describe(),
        about=versions(),
        config=loaded.config.to_json(),
    )


def _match_classes(
    loaded: LoadedModel, sources: Sequence[Source], class_map: str | None
) -> tuple[list[Source], Merge | None]:
    """Reconcile the classes of a model with those of all datasets; see `reconcile`."""
    reconciled = [
        reconcile(loaded.classes, source, class_map, model=loaded.name) for source in sources
    ]
    merge = reconciled[0][1]
    if any(other != merge for _, other in reconciled):
        raise RssegError(
            "the class map fits the model for one dataset and the labels of another",
            where=", ".join(source.spec.name for source in sources),
            fix="evaluate on one at a time",
        )
    return [source for source, _ in reconciled], merge


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """Create a temporary folder that all processes use."""
    with tempfile.TemporaryDirectory(prefix="rsseg-") as name:
        folder = Path(distributed.gather(name)[0])
        if not folder.is_dir():
            raise RssegError(
                "the processes do not share a temporary folder",
                where=str(folder),
                fix="set TMPDIR to a folder that all machines see",
            )
        yield folder


@dataclass
class _Maps:
    """Writes the maps of datasets, one per process at a time, and removes them once scored.

    Attributes:
        loaded: The model.
        tiling: Tiles of a scene.
        device: Device of the model.
        folder: Temporary folder of the maps.
        progress: Progress line.
        merge: Merge of the model's classes; None keeps them.
        by_position: Match bands by position, not by name and wavelength.
        numbers: Numbers of the scenes, for file names.
    """

    loaded: LoadedModel
    tiling: Tiling
    device: torch.device
    folder: Path
    progress: ProgressLine
    merge: Merge | None = None
    by_position: bool = False
    numbers: Iterator[int] = field(default_factory=count)

    def of(self, source: Source) -> Iterator[Comparison]:
        """Map every labelled scene; yield comparisons in the first process only."""
        bands = self.loaded.model.bands
        opener = source.opener if self.by_position else match_bands(bands, source)
        require_band_count(bands, opener, source)
        scale = unit_scale(bands.scale, source.spec.scale)
        infer: Infer = ModelInfer(self.loaded, self.device, unit_scale=scale)
        classes = self.loaded.classes
        if self.merge is not None:
            infer, classes = MergedInfer(infer, self.merge), list(self.merge.classes)
        fill = [value / scale for value in bands.mean]
        labelled = [pair for pair in source.pairs() if pair.label is not None]
        todo = [(pair, self._outputs(classes)) for pair in labelled]
        for first in range(0, len(todo), distributed.world_size()):
            turn = todo[first : first + distributed.world_size()]
            for pair, outputs in turn[distributed.rank() :][:1]:
                self._map(opener.scene(pair.image, fill=fill), infer, outputs)
            distributed.barrier()  # while this turn is scored the other processes map the next one
            for pair, outputs in turn if distributed.is_main() else ():
                yield Comparison(
                    pair.name,
                    outputs.map,
                    partial(_open_labels, opener, pair),
                    pair.domain,
                    pair.regions,
                    open_image=partial(opener.scene, pair.image, fill=fill),
                    rgb=shown_bands(bands),
                    confidence=outputs.confidence,
                    soft=outputs.soft,
                )
                for file in filter(None, (outputs.map, outputs.confidence, outputs.soft)):
                    file.unlink()

    def _outputs(self, classes: Sequence[Class]) -> Outputs:
        """Return the output files of the next scene."""
        number = next(self.numbers)
        return Outputs(
            self.folder / f"{number}.tif",
            classes,
            confidence=self.folder / f"{number}-confidence.tif",
            soft=self.folder / f"{number}-soft.tif" if len(classes) == 2 else None,
            driver="GTiff",
            overwrite=True,
        )

    def _map(self, opened: Scene, infer: Infer, outputs: Outputs) -> None:
        with opened as scene, self.progress.bar(scene.width * scene.height) as progress:
            task = SceneTask(scene, infer, outputs, self.tiling, self.device)
            predict_scene(task, progress=progress)


def _open_labels(opener: Opener, pair: Pair, on: RasterGrid) -> LabelReader:
    labels = opener.labels(pair)
    assert labels is not None
    return labels
