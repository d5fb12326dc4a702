"""Maps scenes with a fitted model, as the options of `predict` require."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import fields, replace
from functools import cached_property, reduce
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli import __version__, distributed
from rsseg_cli.choices import Format
from rsseg_cli.commands.model import LoadedModel, open_model, pick_device
from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.predict.dry_run import Survey, require_disk, survey, warn_of_doubts
from rsseg_cli.commands.predict.explain import choose
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.outputs import read_area, scene_outputs
from rsseg_cli.commands.predict.paths import Target
from rsseg_cli.commands.predict.progress import Line
from rsseg_cli.commands.predict.provenance import file_digest, identity, journal_digest, made_before
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, SceneResult
from rsseg_cli.predict.pipeline import Infer, SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.predict.tta import TestTimeAugmentation
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.training.precision import Precision

TILES_PX = {"cuda": 16 * 512 * 512, "cpu": 2 * 512 * 512}
"""Pixels of a batch by default; larger ones exceed a CPU's caches."""
MOST_PX = {"cuda": 64 * 512 * 512, "cpu": 4 * 512 * 512}
"""Pixels of the largest batch that is tried, for large scenes."""
MOST_TILES = {"cuda": 1024, "cpu": 16}
"""Tiles of the largest batch: a tile has a cost of its own."""
COMPILE_TILES = 2000
"""Least tiles of a scene for which `--compile` saves time."""
WITHOUT_EFFECT = frozenset(
    [
        "scenes",
        "model",  # its digest counts
        "weights",  # the fingerprint of the backbone counts
        "output",
        "device",
        "batch",  # an unfinished map keeps the batch with which it was begun
        "explain",  # these maps have a journal of their own
        "block",
        "quicklook",
        "threads",
        "memory_mb",
        "overwrite",
        "resume",
        "shard",
        "dry_run",
        "as_json",
        "quiet",
    ]
)
"""Options that do not change a map; `--resume` refuses to continue one if any other has changed."""


class ModelInfer:
    """A fitted model as the engine's `Infer`.

    Args:
        fitted: The opened model.
        device: Device of the model.
        gain: Factor from stored values to the model's unit.
        precision: Format of matrix products; that of the training when None.
    """

    def __init__(
        self,
        fitted: LoadedModel,
        device: torch.device,
        *,
        gain: float = 1.0,
        precision: Format | None = None,
    ) -> None:
        self.model, self.gain = fitted.model.to(device).eval(), gain
        self.precision = Precision.choose(precision or fitted.config.training.precision, device)
        self._infer = self.model.infer

    def compile(self, compiled: bool) -> None:
        """Compile the model for the single shape of a scene's batches, or stop using it so."""
        plain = self.model.infer
        self._infer = torch.compile(plain, dynamic=False) if compiled else plain

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) of stored values: (B, K, T, T)."""
        with torch.inference_mode(), self.precision.autocast():
            return self._infer(tiles if self.gain == 1.0 else tiles * self.gain)


class ScenePredictor:
    """A fitted model, opened once to map many scenes with the same options.

    Args:
        options: Options of `predict`.
        line: Prints messages and progress.

    Raises:
        RssegError: The model or the device cannot be used, or the method cannot explain itself.
    """

    def __init__(self, options: PredictOptions, line: Line) -> None:
        self.options, self.line = options, line
        self.device = pick_device(options.device)
        self.fitted = open_model(options.model, weights=options.weights)
        tiling = tiling_for(
            self.fitted, self.device,
            tile=options.tile, overlap=options.overlap, batch=options.batch,
        )  # fmt: skip
        self.tiling = replace(tiling, readers=options.threads, memory_mb=options.memory_mb)
        self._model = ModelInfer(self.fitted, self.device, precision=options.precision)
        self.precision = self._model.precision
        self.infer: Infer = self._model
        if options.tta is not None:
            self.infer = TestTimeAugmentation(self._model, options.tta)
        self.explanations = choose(
            tuple(dict.fromkeys(options.explain)), options.block, self.fitted, self.precision
        )
        line.say(f"model    {self.fitted.describe()}")

    def predict(self, path: str, target: Target, *, together: bool = False) -> SceneResult:
        """Map a scene, unless an earlier run has made all of its maps.

        Args:
            path: The scene.
            target: Paths of its maps.
            together: Whether all ranks make this call and share the scene.

        Raises:
            RssegError: The scene cannot be mapped.
        """
        with nullcontext() if together else distributed.single_process(), ExitStack() as stack:
            with distributed.raise_together():
                scene = stack.enter_context(self._open(path))
                task, *explaining = self._tasks(scene, target)
            self.line.say(f"scene    {_describe(scene)}")
            self._compile(task)
            result = self._map(task, together)
            for explanation, explained in zip(self.explanations, explaining, strict=True):
                self.line.say(f"explain  {explanation.name} at block {explanation.block}")
                self._map(explained, together)
            with distributed.raise_together():
                if distributed.is_main():
                    further = self._further_files([task, *explaining], target)
                    result = replace(result, more=tuple(map(str, further)))
            return result

    def dry_run(self, path: str, target: Target) -> Survey:
        """Estimate what mapping a scene costs."""
        with self._open(path) as scene:
            tasks = self._tasks(scene, target)
            passes = [survey(task, self.fitted) for task in tasks]
            return replace(reduce(Survey.then, passes), compile=self._pays_to_compile(tasks[0]))

    def _open(self, path: str) -> Scene:
        options = self.options
        return open_scene(
            path, self.fitted, bands=parse_bands(options.bands), nodata=options.nodata
        )

    def _tasks(self, scene: Scene, target: Target) -> list[SceneTask]:
        """List what to map: the classes first, then what the method explains."""
        options, journal = self.options, self.journal(scene)
        tags = self._tags(scene, journal)
        outputs = replace(scene_outputs(options, target, self.fitted, tags), journal=journal)
        task = SceneTask(
            scene, self.infer, outputs, self.tiling, self.device, read_area(options, scene)
        )
        if self._pays_to_compile(task):  # each batch that is tried would be compiled anew
            task = replace(task, tiling=replace(self.tiling, most=None))
        tasks = [task]
        # Numbers of things have no mean that tiles could blend into.
        nearest = replace(self.tiling, blend=False)
        for explanation in self.explanations:
            explained = explanation.outputs(outputs, target.stem, journal)
            tasks.append(replace(task, infer=explanation, outputs=explained, tiling=nearest))
        return [replace(task, outputs=self._resumed(task.outputs)) for task in tasks]

    def _resumed(self, outputs: Outputs) -> Outputs:
        """Set whether to continue what an earlier run, or attempt of this one, has left."""
        restarted = distributed.begun_before_restart(outputs.map)
        return replace(outputs, resume=self.options.resume or restarted)

    def _compile(self, task: SceneTask) -> None:
        """Compile the model if the options require it and the scene is large enough."""
        pays = self._pays_to_compile(task)
        self._model.compile(bool(pays))
        if pays is not None:
            self.line.say(
                "compile  the first batch takes a while"
                if pays
                else f"compile  no: below {COMPILE_TILES:,} tiles it takes longer than it saves"
            )

    def _pays_to_compile(self, task: SceneTask) -> bool | None:
        """Return whether compiling saves time for a scene; None without `--compile`."""
        if not self.options.compile:
            return None
        scene, area = task.scene, task.area
        box = Window(0, 0, scene.width, scene.height) if area is None else area.box
        across = self.tiling.axis(scene.width).touching(box.x, box.right)
        down = self.tiling.axis(scene.height).touching(box.y, box.bottom)
        return len(across) * len(down) >= COMPILE_TILES * distributed.world_size()

    def _map(self, task: SceneTask, together: bool) -> SceneResult:
        """Make maps of a scene, unless an earlier run has."""
        scene, outputs, exists = task.scene, task.outputs, False
        with distributed.raise_together():
            if distributed.is_main():
                exists = outputs.resume and made_before(outputs)
                if not exists:
                    warn_of_doubts(scene, self.fitted)
                    require_disk(task)
        if distributed.broadcast(exists):
            self.line.say(f"{outputs.map} exists already, of the same model and options")
            return SceneResult(
                scene.path, str(outputs.map), scene.width, scene.height, status="exists"
            )
        with self.line.scene(scene.width * scene.height) as progress:
            return predict_scene(task, together=together, progress=progress)

    def _further_files(self, tasks: Sequence[SceneTask], target: Target) -> Iterator[Path]:
        """Draw the quicklooks, and yield all files of a scene beside its class map."""
        for task in tasks:
            outputs = task.outputs
            published = (layer.path for layer in outputs.layers() if layer.published)
            yield from (path for path in published if path != target.map)
            if self.options.quicklook:
                from rsseg_cli.commands.predict.quicklook import (
                    quicklook_beside,  # matplotlib takes a second
                )

                bands = self.fitted.model.bands
                look = target.look(outputs.map)
                yield quicklook_beside(outputs.map, look, outputs.classes, task.scene, bands)

    def journal(self, scene: Scene) -> dict[str, str]:
        """Return all that the maps of a scene depend on, with names for users."""
        options = self.options
        values = {each.name: getattr(options, each.name) for each in fields(options)} | {
            "aoi": "" if options.aoi is None else identity(str(options.aoi)),
            "polygons": options.polygons is not None,
            "soft": options.soft and len(self.fitted.classes) == 2,
            "tile": self.tiling.tile,
            "precision": str(self.precision.dtype).removeprefix("torch."),
            "creation_options": " ".join(options.creation_options),
        }
        depends = {
            "the model": self._model_digest,
            "the backbone": self.fitted.about["fingerprint"],
            "the input": identity(scene.path),
            "the version": __version__,
        }
        for name in sorted(values.keys() - WITHOUT_EFFECT):
            option = "--co" if name == "creation_options" else f"--{name.replace('_', '-')}"
            depends[option] = values[name]
        return {key: str(value) for key, value in depends.items()}

    @cached_property
    def _model_digest(self) -> str:
        return file_digest(self.fitted.path)

    def _tags(self, scene: Scene, journal: dict[str, str]) -> dict[str, str]:
        """Return the provenance that is written into the maps."""
        about = {
            "software": f"rsseg {__version__}",
            "version": __version__,
            "model": self.fitted.name,
            "model_sha256": journal["the model"],
            "backbone": getattr(self.fitted.config.backbone, "name", ""),
            "backbone_fingerprint": journal["the backbone"],
            "method": self.fitted.config.method.name,
            "tile": self.tiling.tile,
            "overlap": self.tiling.overlap,
            "precision": journal["--precision"],
            "input": scene.path,
            "journal": journal_digest(journal),
        }
        return {key: str(value) for key, value in about.items()}


def tiling_for(
    fitted: LoadedModel,
    device: torch.device,
    *,
    tile: int | None,
    overlap: float,
    batch: int | None,
) -> Tiling:
    """Choose how scenes are cut: by default into tiles as large as those of the training."""
    side, multiple, kind = tile or fitted.config.data.tile, fitted.model.multiple, device.type
    side = -(-side // multiple) * multiple
    usual, most = (
        min(MOST_TILES[kind], max(1, pixels[kind] // side**2)) for pixels in (TILES_PX, MOST_PX)
    )
    return Tiling(
        tile=side, overlap=overlap, batch=batch or usual, most=None if batch else most,
        on_host=kind == "cpu",
    )  # fmt: skip


def open_scene(
    path: str,
    fitted: LoadedModel,
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
) -> Scene:
    """Open a scene with the bands of the model.

    Raises:
        RssegError: It has another number of bands.
    """
    required = fitted.model.bands
    with Scene.open(path, bands=bands, nodata=nodata, warn=False) as scene:  # the call below warns
        if scene.count != len(required):
            names = " ".join(name or "?" for name in scene.descriptions)
            raise RssegError(
                f"{Path(path).name} has {counted(scene.count, 'band')} ({names}), the model needs "
                f"{len(required)} ({' '.join(required.names)})",
                where=f"{path}, model {fitted.name}",
                fix=f"a {len(required)}-band scene, or --bands if the order is known, or a model "
                "fitted on these bands",
            )
    return Scene.open(path, bands=bands, nodata=nodata, fill=required.mean)


def _describe(scene: Scene) -> str:
    gsd = abs(scene.transform.determinant) ** 0.5  # also of rotated grids
    crs = f"{scene.crs.to_string()}, {gsd:.4g} per pixel" if scene.crs else "no CRS"
    nodata = "no nodata" if scene.nodata is None else f"nodata {scene.nodata:g}"
    return (
        f"{scene.path} {scene.width:,} x {scene.height:,}, "
        f"{counted(scene.count, 'band')} {scene.dtype}, {crs}, {nodata}"
    )
