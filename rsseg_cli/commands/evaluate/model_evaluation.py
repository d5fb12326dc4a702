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
from rsseg_cli.commands.evaluate.options import EvaluateOptions
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
from rsseg_cli.evaluate.rasters import Comparison, evaluate_scenes
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import Infer, SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.labels import LabelReader, RasterGrid
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.report import Report


def evaluate_model(options: EvaluateOptions, *, by_position: bool = False) -> Report:
    """Map all labelled scenes of the datasets `--on` with a model, and score the maps.

    Each of several processes maps other scenes; rank 0 scores all maps.

    Args:
        options: The model, the datasets, and options of the evaluation.
        by_position: Match bands by position, not by name and wavelength.

    Raises:
        RssegError: The classes or bands of a dataset are not the model's.
    """
    device = pick_device(options.device)
    loaded = open_model(options.model, weights=options.weights)
    # With the fit's fraction, `DIR:val` is its validation set.
    val_fraction, root = loaded.config.data.val_fraction, options.data_root
    sources, merge = _match_classes(
        loaded,
        [Source.locate(text, data_root=root, holdout=val_fraction) for text in options.on],
        options.class_map,
    )
    classes = loaded.classes if merge is None else list(merge.classes)
    tiling = tiling_for(loaded, device, tile=None, overlap=options.overlap, batch=None)
    progress = ProgressLine(quiet=options.silent or not distributed.is_main())
    progress.print(f"model    {loaded.describe()}")
    with _shared_folder() as folder:
        maps = _Maps(loaded, tiling, device, folder, progress, merge, by_position)
        comparisons = (comparison for source in sources for comparison in maps.of(source))
        if distributed.is_main():
            evaluation = evaluate_scenes(comparisons, classes, boundary_px=options.boundary or None)
        else:
            evaluation = Evaluation.empty(classes, boundary_px=None)
            deque(comparisons, maxlen=0)  # yields nothing, but writes the maps of this process
        evaluation = distributed.gather(evaluation)[0]
    return evaluation.report(
        f"{loaded.name} on {', '.join(options.on)}",
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
            "the class map applies to the model for one dataset and to the labels of another",
            where=", ".join(source.spec.name for source in sources),
            fix="evaluate on one dataset at a time",
        )
    return [source for source, _ in reconciled], merge


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """Create a temporary folder that all processes share."""
    with tempfile.TemporaryDirectory(prefix="rsseg-") as name:
        folder = Path(distributed.gather(name)[0])
        if not folder.is_dir():
            raise RssegError(
                "the processes do not share a temporary folder",
                where=str(folder),
                fix="set TMPDIR to a folder that all machines share",
            )
        yield folder


@dataclass
class _Maps:
    """Writes the maps of datasets, one per process at a time, and removes them once scored.

    Attributes:
        folder: Temporary folder of the maps.
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
        """Map every labelled scene; yield comparisons on rank 0 only."""
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
        scenes = [(pair, self._outputs(classes)) for pair in labelled]
        for first in range(0, len(scenes), distributed.world_size()):
            batch = scenes[first : first + distributed.world_size()]
            for pair, outputs in batch[distributed.rank() :][:1]:
                self._map(opener.scene(pair.image, fill=fill), infer, outputs)
            distributed.barrier()  # the other ranks map the next scenes while rank 0 scores these
            for pair, outputs in batch if distributed.is_main() else ():
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
