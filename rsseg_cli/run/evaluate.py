"""`evaluate`: a map against its truth, or a model on labelled data."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from rsseg_cli import distributed
from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.data.class_map import Merge
from rsseg_cli.data.pair import Opener, Pair
from rsseg_cli.data.source import Source
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.evaluate.rasters import (
    BOUNDARY_PX,
    Comparison,
    evaluate_rasters,
    evaluate_scenes,
)
from rsseg_cli.evaluate.truth import read_class_list
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import Infer, SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.labels import LabelReader, Placed
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.pictures import quicklook
from rsseg_cli.report.report import Report
from rsseg_cli.run.classes import MergedInfer, reconcile
from rsseg_cli.run.live import Line
from rsseg_cli.run.mapper import ModelInfer, tiling_for
from rsseg_cli.run.model import Fitted, open_model, pick_device
from rsseg_cli.run.reports import versions
from rsseg_cli.run.review import shown_bands
from rsseg_cli.words import counted

NEAR_NM = 60.0
"""Bands of two sensors count as the same band up to this distance of their centres."""


def rasters(
    prediction: Path,
    truth: Path,
    *,
    field: str | None,
    align: bool,
    ignore: Sequence[int],
    classes: Path | None = None,
    boundary_px: int | None = BOUNDARY_PX,
    image: Path | None = None,
    pictures: bool = False,
    soft: bool | None = None,
) -> Report:
    """Score one map; see `evaluate.rasters.evaluate_rasters`.

    Args:
        prediction: The map.
        truth: Its truth.
        field: Attribute of polygons that says the class.
        align: Resample a truth on another grid.
        ignore: Ids in the truth that are no class.
        classes: A dataset.yaml, or another map, that names the classes.
        boundary_px: Width of the outlines to compare; None leaves them out.
        image: The scene that was mapped, shown beside the map.
        pictures: Draw map, truth and errors.
        soft: Whether the map holds shares of one object; None: as it says itself.
    """
    known = None if classes is None else read_class_list(classes)
    found = evaluate_rasters(
        prediction,
        truth,
        known,
        align=align,
        attribute=field,
        ignore=ignore,
        boundary_px=boundary_px,
        image=image,
        soft=soft,
    )
    drawn: dict[str, Any] = {}
    if (pictures or image is not None) and found.saliency is None:
        drawn["Map against truth"] = quicklook(
            prediction, found.classes, image=image, truth=truth, code=found.code
        )
    subtitle = f"against {truth}"
    return found.report(str(prediction), subtitle=subtitle, about=versions(), pictures=drawn)


def model(
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
    """Map every scene of some datasets with a model, and score the maps where there is truth.

    Several processes map a scene each; the leading one compares.

    Args:
        path: Run folder or model file; the newest finished run when None.
        on: `DATASET[:split[:domain]]`, one or more.
        data_root: Where dataset presets lie.
        class_map: Turns the classes of the model or those of the datasets into the others'.
        by_position: Take the bands of the datasets one by one, whatever they show.
        weights: Weights file of the backbone, if it has moved.
        overlap: Share of a tile that overlaps its neighbour.
        boundary_px: Width of the outlines to compare; None leaves them out.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress.

    Raises:
        RssegError: The dataset's classes or bands are not the model's.
    """
    where = pick_device(device)
    fitted = open_model(path, weights=weights)
    # The same share is held back as in the fit, so that `DIR:val` is the same ground.
    held_back = fitted.config.data.validation
    found_sources = [Source.locate(text, data_root=data_root, held_back=held_back) for text in on]
    pairs = [
        reconcile(fitted.classes, source, class_map, model=fitted.name) for source in found_sources
    ]
    sources, merge = [source for source, _ in pairs], pairs[0][1]
    if any(other != merge for _, other in pairs):
        raise RssegError(
            "the map fits the model for one dataset and the labels of another",
            where=", ".join(on),
            fix="evaluate on one at a time",
        )
    classes = fitted.classes if merge is None else list(merge.classes)
    tiling = tiling_for(fitted, where, tile=None, overlap=overlap, batch=None)
    line = Line(quiet=quiet or not distributed.is_main())
    line.say(f"model    {fitted.describe()}")
    with _common_folder() as folder:
        maps = _Maps(fitted, tiling, where, folder, line, merge, by_position)
        comparisons = (one for source in sources for one in maps.of(source))
        if distributed.is_main():
            evaluation = evaluate_scenes(comparisons, classes, boundary_px=boundary_px)
        else:
            evaluation = Evaluation.of(classes, boundary_px=None)
            deque(comparisons, maxlen=0)  # there are none: it makes maps for the other
        found = distributed.gather(evaluation)[0]
    title = f"{fitted.name} on {', '.join(on)}"
    return found.report(
        title, subtitle=fitted.describe(), about=versions(), config=fitted.config.document()
    )


@contextmanager
def _common_folder() -> Iterator[Path]:
    """Make a folder that all processes see, for the time being."""
    with tempfile.TemporaryDirectory(prefix="rsseg-") as own:
        folder = Path(distributed.gather(own)[0])
        if not folder.is_dir():
            raise RssegError(
                "the processes share no folder for maps",
                where=str(folder),
                fix="set TMPDIR to a folder that all machines see",
            )
        yield folder


@dataclass
class _Maps:
    """Makes the maps of datasets, one per process and for as long as they are compared.

    Attributes:
        fitted: The model.
        tiling: How scenes are cut.
        device: Where the model runs.
        folder: Where maps lie for the time being.
        line: Told which scene it is at.
        merge: What becomes of the model's classes; None: they stay.
        by_position: Whether bands are taken one by one, not by name and wavelength.
        numbers: Of the scenes, for the names of their maps.
    """

    fitted: Fitted
    tiling: Tiling
    device: torch.device
    folder: Path
    line: Line
    merge: Merge | None = None
    by_position: bool = False
    numbers: Iterator[int] = field(default_factory=count)

    def of(self, source: Source) -> Iterator[Comparison]:
        """Map every pair that has a label; say in the leading process how it is compared."""
        bands = self.fitted.model.bands
        opener = source.opener if self.by_position else matched(bands, source)
        require_count(bands, opener, source)
        gain = rescaling(self.fitted.model.bands.scale, source.spec.scale)
        infer: Infer = ModelInfer(self.fitted, self.device, gain=gain)
        classes = self.fitted.classes
        if self.merge is not None:
            infer, classes = MergedInfer(infer, self.merge), list(self.merge.classes)
        fill = [value / gain for value in self.fitted.model.bands.mean]
        labelled = [pair for pair in source.pairs() if pair.label is not None]
        todo = [(pair, self._outputs(classes)) for pair in labelled]
        for first in range(0, len(todo), distributed.world_size()):
            turn = todo[first : first + distributed.world_size()]
            for pair, made in turn[distributed.rank() :][:1]:
                self._map(opener.scene(pair.image, fill=fill), infer, made)
            distributed.barrier()  # while this turn is compared the others map the next one
            for pair, made in turn if distributed.is_main() else ():
                yield Comparison(
                    pair.name,
                    made.map,
                    partial(_open_labels, opener, pair),
                    pair.domain,
                    pair.regions,
                    open_image=partial(opener.scene, pair.image, fill=fill),
                    rgb=shown_bands(self.fitted.model.bands),
                    confidence=made.confidence,
                    soft=made.soft,
                )
                for file in filter(None, (made.map, made.confidence, made.soft)):
                    file.unlink()

    def _outputs(self, classes: Sequence[Class]) -> Outputs:
        """Name the maps of the next scene."""
        number = next(self.numbers)
        target, sure, soft = (self.folder / f"{number}{end}.tif" for end in ("", "-sure", "-soft"))
        return Outputs(
            target,
            classes,
            confidence=sure,
            soft=soft if len(classes) == 2 else None,
            driver="GTiff",
            overwrite=True,
        )

    def _map(self, opened: Scene, infer: Infer, made: Outputs) -> None:
        with opened as scene, self.line.scene(scene.width * scene.height) as progress:
            task = SceneTask(scene, infer, made, self.tiling, self.device)
            predict_scene(task, progress=progress)


def _open_labels(opener: Opener, pair: Pair, on: Placed) -> LabelReader:
    labels = opener.labels(pair)
    assert labels is not None
    return labels


def matched(wanted: Bands, source: Source) -> Opener:
    """Open a dataset's files with the bands of a model, matched by name, else by wavelength.

    Raises:
        RssegError: The dataset lacks one of the bands.
    """
    opener, chosen = source.opener, []
    for name, centre in zip(wanted.names, wanted.wavelengths_nm, strict=True):
        found = [
            file_band
            for band, file_band in zip(source.spec.bands, opener.bands, strict=True)
            if band.name == name
            or (
                centre is not None
                and band.wavelength_nm is not None
                and abs(band.wavelength_nm - centre) < NEAR_NM
            )
        ]
        same = [
            b for b, spec in zip(opener.bands, source.spec.bands, strict=True) if spec.name == name
        ]
        if not found:
            theirs = " ".join(band.name for band in source.spec.bands)
            raise RssegError(
                f"{source.spec.name} has no band {name} ({theirs})",
                where=f"{source.spec.name}, bands of the model: {' '.join(wanted.names)}",
                fix="name the bands alike in both dataset.yaml, or give their wavelength_nm",
            )
        chosen.append((same or found)[0])
    return replace(opener, bands=tuple(chosen))


def require_count(wanted: Bands, opener: Opener, source: Source) -> None:
    """Refuse a dataset with another number of bands.

    Raises:
        RssegError: It has more or fewer than the model reads.
    """
    if len(opener.bands) != len(wanted):
        raise RssegError(
            f"{source.spec.name} has {counted(len(opener.bands), 'band')}, the model reads "
            f"{len(wanted)}",
            where=source.spec.name,
            fix=f"bands of the model: {' '.join(wanted.names)}",
        )


def rescaling(model: float | None, data: float | None) -> float:
    """Give the factor that brings stored values of a dataset to the scale that a model knows."""
    return 1.0 if model is None or data is None else data / model
