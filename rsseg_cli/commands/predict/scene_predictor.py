"""Maps scenes with a fitted model and the options of `predict`."""

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
from rsseg_cli.commands.predict.dry_run import DryRun, estimate, require_disk, warn_about_problems
from rsseg_cli.commands.predict.explain import choose_explanations
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.parse_options import parse_area, scene_outputs
from rsseg_cli.commands.predict.paths import OutputPaths
from rsseg_cli.commands.predict.progress import ProgressLine
from rsseg_cli.commands.predict.provenance import (
    dependencies_digest,
    file_digest,
    file_identity,
    is_complete,
)
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

DEFAULT_BATCH_PX = {"cuda": 16 * 512 * 512, "cpu": 2 * 512 * 512}
"""Pixels of a batch by default; larger ones exceed a CPU's caches."""
MAX_BATCH_PX = {"cuda": 64 * 512 * 512, "cpu": 4 * 512 * 512}
"""Pixels of the largest batch that is tried for large scenes."""
MAX_BATCH = {"cuda": 1024, "cpu": 16}
"""Tiles of the largest batch, however small they are."""
COMPILE_TILES = 2000
"""Minimum number of tiles of a scene for which `--compile` saves time."""
WITHOUT_EFFECT = frozenset([
    "scenes", "output", "device", "threads", "memory_mb", "quicklook", "overwrite", "resume",
    "shard", "dry_run", "as_json", "quiet",
    "model", "weights",  # their digests are dependencies
    "batch",  # stored in the resume state
    "explain", "block",  # maps of --explain have dependencies of their own
])  # fmt: skip
"""Options that do not change a map; `--resume` requires that no other option has changed."""


class ModelInfer:
    """A fitted model as the engine's `Infer`.

    Args:
        fitted: The model; it is moved to the device.
        device: Device of the model.
        unit_scale: Factor from stored values to the model's unit.
        precision: Number format of the forward pass; that of the training when None.
    """

    def __init__(
        self,
        fitted: LoadedModel,
        device: torch.device,
        *,
        unit_scale: float = 1.0,
        precision: Format | None = None,
    ) -> None:
        self.model, self.unit_scale = fitted.model.to(device).eval(), unit_scale
        self.precision = Precision.choose(precision or fitted.config.training.precision, device)
        self._infer = self.model.infer

    def compile(self, compiled: bool) -> None:
        """Compile the model for one batch shape, or use it without compilation."""
        plain = self.model.infer
        self._infer = torch.compile(plain, dynamic=False) if compiled else plain

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) of stored values; return (B, K, T, T)."""
        with torch.inference_mode(), self.precision.autocast():
            return self._infer(tiles if self.unit_scale == 1.0 else tiles * self.unit_scale)


class ScenePredictor:
    """A fitted model, opened once to map many scenes with the same options.

    Raises:
        RssegError: The model, the device, or an explanation is not available.
    """

    def __init__(self, options: PredictOptions, progress: ProgressLine) -> None:
        self.options, self.progress = options, progress
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
        self.explanations = choose_explanations(
            tuple(dict.fromkeys(options.explain)), options.block, self.fitted, self.precision
        )
        progress.print(f"model    {self.fitted.describe()}")

    def predict(self, path: str, paths: OutputPaths, *, together: bool = False) -> SceneResult:
        """Map a scene, unless an earlier run has written all of its maps.

        With `together`, all ranks make this call and share the scene.

        Raises:
            RssegError: The scene cannot be mapped.
        """
        with nullcontext() if together else distributed.single_process(), ExitStack() as stack:
            with distributed.raise_together():
                scene = stack.enter_context(self._open(path))
                task, *explaining = self._tasks(scene, paths)
            self.progress.print(f"scene    {_describe(scene)}")
            self._compile(task)
            result = self._map(task, together)
            for explanation, explained in zip(self.explanations, explaining, strict=True):
                self.progress.print(f"explain  {explanation.name} at block {explanation.block}")
                self._map(explained, together)
            with distributed.raise_together():
                if distributed.is_main():
                    files = self._further_files([task, *explaining], paths)
                    result = replace(result, more=tuple(map(str, files)))
            return result

    def dry_run(self, path: str, paths: OutputPaths) -> DryRun:
        """Estimate the costs of mapping a scene."""
        with self._open(path) as scene:
            tasks = self._tasks(scene, paths)
            passes = [estimate(task, self.fitted) for task in tasks]
            return replace(reduce(DryRun.then, passes), compile=self._pays_to_compile(tasks[0]))

    def _open(self, path: str) -> Scene:
        """Open a scene; raise an RssegError if its number of bands is not the model's."""
        bands, nodata = parse_bands(self.options.bands), self.options.nodata
        needed = self.fitted.model.bands
        with Scene.open(path, bands=bands, nodata=nodata, warn=False) as scene:  # opened again
            if scene.count != len(needed):
                names = " ".join(name or "?" for name in scene.descriptions)
                raise RssegError(
                    f"{Path(path).name} has {counted(scene.count, 'band')} ({names}), the model "
                    f"needs {len(needed)} ({' '.join(needed.names)})",
                    where=f"{path}, model {self.fitted.name}",
                    fix=f"a {len(needed)}-band scene, or --bands if the order is known, or a model "
                    "fitted on these bands",
                )
        return Scene.open(path, bands=bands, nodata=nodata, fill=needed.mean)

    def _tasks(self, scene: Scene, paths: OutputPaths) -> list[SceneTask]:
        """List the tasks of a scene: first the class map, then the explanations."""
        options, dependencies = self.options, self.dependencies(scene)
        tags = self._tags(scene, dependencies)
        outputs = scene_outputs(options, paths, self.fitted, dependencies=dependencies, tags=tags)
        task = SceneTask(
            scene, self.infer, outputs, self.tiling, self.device, parse_area(options, scene)
        )
        if self._pays_to_compile(task):  # each batch size that is tried would be compiled anew
            task = replace(task, tiling=replace(self.tiling, largest_batch=None))
        tasks = [task]
        # Explanations show the decision in one tile, not a mean over tiles.
        nearest = replace(self.tiling, blend=False)
        for explanation in self.explanations:
            explained = explanation.outputs(outputs, paths.stem)
            tasks.append(replace(task, infer=explanation, outputs=explained, tiling=nearest))
        return [replace(task, outputs=self._set_resume(task.outputs)) for task in tasks]

    def _set_resume(self, outputs: Outputs) -> Outputs:
        """Set `resume` if the options or a restart of this run require it."""
        restarted = distributed.begun_before_restart(outputs.map)
        return replace(outputs, resume=self.options.resume or restarted)

    def _compile(self, task: SceneTask) -> None:
        """Compile the model if the options require it and the scene is large enough."""
        pays = self._pays_to_compile(task)
        self._model.compile(bool(pays))
        if pays is not None:
            self.progress.print(
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
        """Write the maps of a task, unless an earlier run has."""
        scene, outputs, exists = task.scene, task.outputs, False
        with distributed.raise_together():
            if distributed.is_main():
                exists = outputs.resume and is_complete(outputs)
                if not exists:
                    warn_about_problems(scene, self.fitted)
                    require_disk(task)
        if distributed.broadcast(exists):
            self.progress.print(f"{outputs.map} exists already, with the same model and options")
            return SceneResult(
                scene.path, str(outputs.map), scene.width, scene.height, status="exists"
            )
        with self.progress.bar(scene.width * scene.height) as callback:
            return predict_scene(task, together=together, progress=callback)

    def _further_files(self, tasks: Sequence[SceneTask], paths: OutputPaths) -> Iterator[Path]:
        """Draw the quicklooks, and yield all files of a scene beside its class map."""
        for task in tasks:
            outputs = task.outputs
            yield from (path for path in outputs.published() if path != paths.map)
            if self.options.quicklook:
                # Imports matplotlib, which takes a second.
                from rsseg_cli.commands.predict.quicklook import write_quicklook

                png, bands = paths.quicklook(outputs.map), self.fitted.model.bands
                yield write_quicklook(outputs.map, png, outputs.classes, task.scene, bands)

    def dependencies(self, scene: Scene) -> dict[str, str]:
        """Return name and value of everything that changes the maps of a scene."""
        options = self.options
        values = {field.name: getattr(options, field.name) for field in fields(options)} | {
            "aoi": "" if options.aoi is None else file_identity(str(options.aoi)),
            "polygons": options.polygons is not None,
            "soft": options.soft and len(self.fitted.classes) == 2,
            "tile": self.tiling.tile,
            "precision": str(self.precision.dtype).removeprefix("torch."),
            "creation_options": " ".join(options.creation_options),
        }
        dependencies = {
            "the model": self._model_digest,
            "the backbone": self.fitted.about["fingerprint"],
            "the input": file_identity(scene.path),
            "the version": __version__,
        }
        for name in sorted(values.keys() - WITHOUT_EFFECT):
            option = "--co" if name == "creation_options" else f"--{name.replace('_', '-')}"
            dependencies[option] = values[name]
        return {key: str(value) for key, value in dependencies.items()}

    @cached_property
    def _model_digest(self) -> str:
        return file_digest(self.fitted.path)

    def _tags(self, scene: Scene, dependencies: dict[str, str]) -> dict[str, str]:
        """Return the provenance that is written into the maps."""
        tags = {
            "software": f"rsseg {__version__}",
            "version": __version__,
            "model": self.fitted.name,
            "model_sha256": dependencies["the model"],
            "backbone": getattr(self.fitted.config.backbone, "name", ""),
            "backbone_fingerprint": dependencies["the backbone"],
            "method": self.fitted.config.method.name,
            "tile": self.tiling.tile,
            "overlap": self.tiling.overlap,
            "precision": dependencies["--precision"],
            "input": scene.path,
            "journal": dependencies_digest(dependencies),
        }
        return {key: str(value) for key, value in tags.items()}


def tiling_for(
    fitted: LoadedModel,
    device: torch.device,
    *,
    tile: int | None,
    overlap: float,
    batch: int | None,
) -> Tiling:
    """Choose tiles and batches; by default the tile of the training."""
    side, multiple, kind = tile or fitted.config.data.tile, fitted.model.multiple, device.type
    side = -(-side // multiple) * multiple
    default, largest = (
        min(MAX_BATCH[kind], max(1, pixels[kind] // side**2))
        for pixels in (DEFAULT_BATCH_PX, MAX_BATCH_PX)
    )
    return Tiling(
        tile=side, overlap=overlap, batch=batch or default,
        largest_batch=None if batch else largest, on_host=kind == "cpu",
    )  # fmt: skip


def _describe(scene: Scene) -> str:
    gsd = abs(scene.transform.determinant) ** 0.5  # also of rotated grids
    crs = f"{scene.crs.to_string()}, {gsd:.4g} per pixel" if scene.crs else "no CRS"
    nodata = "no nodata" if scene.nodata is None else f"nodata {scene.nodata:g}"
    return (
        f"{scene.path} {scene.width:,} x {scene.height:,}, "
        f"{counted(scene.count, 'band')} {scene.dtype}, {crs}, {nodata}"
    )
