"""`predict`: a fitted model over whole scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli import __version__
from rsseg_cli.errors import Interrupted, PartialFailure, RssegError
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, SceneResult
from rsseg_cli.predict.pipeline import Infer
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.predict.turns import Turned
from rsseg_cli.raster.scene import Scene
from rsseg_cli.run import scenes as names
from rsseg_cli.run import survey
from rsseg_cli.run.explain import choose
from rsseg_cli.run.journal import file_digest, identity, journal_digest, made_before
from rsseg_cli.run.live import Line
from rsseg_cli.run.model import Fitted, open_model, pick_device
from rsseg_cli.run.request import Request
from rsseg_cli.training.precision import Format, Precision

TILES_PX = {"cuda": 16 * 512 * 512, "cpu": 4 * 512 * 512}
"""Pixels of a batch where the user asks for none."""


class ModelInfer:
    """A fitted model as the engine wants it.

    Args:
        fitted: The opened model.
        device: Where it runs.
        gain: Factor that brings stored values to the scale that the model knows.
        precision: Format of matrix products; that of the training when None.
    """

    def __init__(
        self,
        fitted: Fitted,
        device: torch.device,
        *,
        gain: float = 1.0,
        precision: Format | None = None,
    ) -> None:
        self.model, self.gain = fitted.model.to(device).eval(), gain
        wanted = precision or fitted.config.training.precision
        self.precision = Precision.choose(wanted, device)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) of stored values: (B, K, T, T)."""
        with torch.inference_mode(), self.precision.autocast():
            return self.model.infer(tiles if self.gain == 1.0 else tiles * self.gain)


class Mapper:
    """A model, made ready to map one scene after the other as was asked.

    Args:
        request: What is asked.
        model: Run folder or model file; the newest finished run when None.
        weights: Weights file of the backbone, if it has moved.
        device: auto, cpu, cuda or cuda:N.
        line: Told what happens.
    """

    def __init__(
        self, request: Request, model: Path | None, weights: Path | None, device: str, line: Line
    ) -> None:
        self.request, self.line = request, line
        self.device = pick_device(device)
        self.fitted = open_model(model, weights=weights)
        tiling = tiling_for(
            self.fitted, self.device,
            tile=request.tile, overlap=request.overlap, batch=request.batch,
        )  # fmt: skip
        self.tiling = replace(tiling, readers=request.threads, memory_mb=request.memory_mb)
        infer = ModelInfer(self.fitted, self.device, precision=request.precision)
        self.precision = infer.precision
        self.infer: Infer = infer if request.tta is None else Turned(infer, request.tta)
        self.explanations = choose(request.explain, request.block, self.fitted, self.precision)
        line.say(f"model    {self.fitted.describe()}")

    def open(self, path: str) -> Scene:
        """Open a scene as the model wants it."""
        request = self.request
        return open_scene(path, self.fitted, bands=request.file_bands(), nodata=request.nodata)

    def map(self, path: str, target: names.Target) -> SceneResult:
        """Map a scene, unless an earlier run has done it all."""
        with self.open(path) as scene:
            self.line.say(f"scene    {_describe(scene)}")
            journal = self.journal(scene)
            outputs = self.request.outputs(target, self.fitted, self.tags(scene, journal))
            result = self._map(scene, self.infer, outputs, journal, self.tiling)
            more = [str(path) for path in self._beside(scene, outputs, target, journal)]
            return replace(result, more=tuple(more))

    def _map(
        self,
        scene: Scene,
        infer: Infer,
        outputs: Outputs,
        journal: dict[str, str],
        tiling: Tiling,
    ) -> SceneResult:
        """Make maps of a scene, unless an earlier run has."""
        if self.request.resume and made_before(outputs.map, journal, self.request.overwrite):
            self.line.say(f"{outputs.map} is there already, of the same model and options")
            return SceneResult(
                scene.path, str(outputs.map), scene.width, scene.height, status="there"
            )
        area = self.request.area(scene)
        survey.warn_of_doubts(scene, self.fitted)
        survey.require_disk(scene, outputs, area)
        with self.line.scene(scene.width * scene.height) as progress:
            return predict_scene(
                scene, infer, outputs, tiling=tiling, device=self.device, area=area,
                journal=journal, resume=self.request.resume, progress=progress,
            )  # fmt: skip

    def _beside(
        self, scene: Scene, outputs: Outputs, target: names.Target, journal: dict[str, str]
    ) -> Iterator[Path]:
        """Make what goes with a class map, and name all that lies beside it."""
        wanted = [(outputs, self.fitted.classes)]
        for one in self.explanations:
            self.line.say(f"explain  {one.name} at block {one.block}")
            explained = one.outputs(outputs, target.stem, journal)
            # Numbers of things have no mean that neighbouring tiles could agree on.
            nearest = replace(self.tiling, blend=False)
            self._map(scene, one, explained, one.journal(journal), nearest)
            wanted.append((explained, list(one.things)))
        for made, classes in wanted:
            yield from (one.path for one in made.made() if one.shown and one.path != target.map)
            if self.request.quicklook:
                from rsseg_cli.run.quicklook import quicklook_beside  # matplotlib takes a second

                look = target.look(made.map)
                yield quicklook_beside(made.map, look, classes, scene, self.fitted.model.bands)

    def plan(self, path: str, target: names.Target) -> survey.Survey:
        """Say what mapping a scene would take."""
        with self.open(path) as scene:
            outputs = self.request.outputs(target, self.fitted, {})
            area = self.request.area(scene)
            return survey.survey(
                scene, self.fitted, self.infer, outputs, self.tiling, self.device, area
            )

    def journal(self, scene: Scene) -> dict[str, str]:
        """Name all that the maps of a scene depend on."""
        request, tiling = self.request, self.tiling
        about = {
            "the model": file_digest(self.fitted.path),
            "the backbone": str(self.fitted.about["fingerprint"]),
            "the input": identity(scene.path),
            "--aoi": "" if request.aoi is None else identity(str(request.aoi)),
            "--polygons": str(request.polygons is not None),
            "--tile": tiling.tile,
            "the precision": str(self.precision.dtype),
            "the version": __version__,
        }
        same = ("overlap", "tta", "bands", "nodata", "bbox", "bbox_crs", "probabilities",
                "confidence", "reject", "sieve", "simplify", "format")  # fmt: skip
        about |= {f"--{name.replace('_', '-')}": getattr(request, name) for name in same}
        about["--co"] = " ".join(request.options)
        return {key: str(value) for key, value in about.items()}

    def tags(self, scene: Scene, journal: dict[str, str]) -> dict[str, str]:
        """Say in the files how they were made."""
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
            "precision": journal["the precision"].removeprefix("torch."),
            "input": scene.path,
            "journal": journal_digest(journal),
        }
        return {key: str(value) for key, value in about.items()}


def predict(
    scenes: Sequence[str],
    request: Request | None = None,
    *,
    model: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    written: Callable[[str], object] | None = None,
) -> list[SceneResult]:
    """Map scenes one after the other.

    A single scene's mistake is raised; of several, each result says what became of it.

    Args:
        scenes: Files, folders, patterns, GDAL names, or `-` for a list on stdin.
        request: What is asked; a class map when None.
        model: Run folder or model file; the newest finished run when None.
        weights: Weights file of the backbone, if it has moved.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress.
        written: Told the path of every map, as soon as it is there.

    Raises:
        RssegError: Before anything is computed: no model, no scene, an output that is there.
        Interrupted: By the keyboard.
    """
    request = request or Request()
    paths, targets = _prepare(scenes, request)
    line = Line(quiet=quiet)
    mapper = Mapper(request, model, weights, device, line)
    results = []
    for path, target in zip(paths, targets, strict=True):
        try:
            result = mapper.map(path, target)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"interrupted at {path}", where=str(target.map), fix="the same call with --resume"
            ) from stop
        except RssegError as error:
            if len(paths) == 1:
                raise
            line.say(str(error))
            result = SceneResult(input=path, output=None, status="failed", error=error.what)
        results.append(result)
        if result.output is not None and written is not None:
            written(result.output)
    return results


def dry_run(
    scenes: Sequence[str],
    request: Request,
    *,
    model: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
) -> list[survey.Survey]:
    """Say what mapping scenes would take, from a few batches of each; writes nothing.

    Raises:
        RssegError: What `predict` would refuse at the start.
    """
    paths, targets = _prepare(scenes, request)
    mapper = Mapper(request, model, weights, device, Line(quiet=True))
    return [mapper.plan(path, target) for path, target in zip(paths, targets, strict=True)]


def _prepare(scenes: Sequence[str], request: Request) -> tuple[list[str], list[names.Target]]:
    """Do all checks that need no model."""
    paths = names.expand(scenes)
    request.creation()
    request.file_bands()
    targets = names.place_outputs(paths, request.output, request.polygons)
    if not (request.overwrite or request.resume):
        names.refuse_replacing(targets, request.suffixes())
    return paths, targets


def tiling_for(
    fitted: Fitted,
    device: torch.device,
    *,
    tile: int | None,
    overlap: float,
    batch: int | None,
) -> Tiling:
    """Choose how scenes are cut: by default into tiles as large as those of the training."""
    wanted, multiple = tile or fitted.config.data.tile, fitted.model.multiple
    side = -(-wanted // multiple) * multiple
    return Tiling(
        tile=side, overlap=overlap, batch=batch or max(1, TILES_PX[device.type] // side**2)
    )


def failure(results: Iterable[SceneResult]) -> PartialFailure | None:
    """Make the error for a run of which some scenes failed, None when all are there."""
    found = list(results)
    failed = [result for result in found if result.status == "failed"]
    if not failed:
        return None
    return PartialFailure(
        f"{len(failed)} of {len(found)} scenes failed",
        where=", ".join(result.input for result in failed),
        fix="see each scene's error above; the other maps are written",
    )


def open_scene(
    path: str, fitted: Fitted, *, bands: Sequence[int] | None = None, nodata: float | None = None
) -> Scene:
    """Open a scene as the model wants it.

    Raises:
        RssegError: Its bands are not the model's.
    """
    wanted = fitted.model.bands
    with Scene.open(path, bands=bands, nodata=nodata) as scene:
        if scene.count != len(wanted):
            names = " ".join(name or "?" for name in scene.descriptions)
            raise RssegError(
                f"{Path(path).name} has {scene.count} bands ({names}), the model wants "
                f"{len(wanted)} ({' '.join(wanted.names)})",
                where=f"{path}, model {fitted.name}",
                fix=f"a {len(wanted)}-band scene, or --bands if the order is known, or a model "
                "fitted on these bands",
            )
    return Scene.open(path, bands=bands, nodata=nodata, fill=wanted.mean)


def _describe(scene: Scene) -> str:
    gsd = abs(scene.transform.a)
    place = f"{scene.crs.to_string()}, {gsd:g} per pixel" if scene.crs else "no CRS"
    nodata = "no nodata" if scene.nodata is None else f"nodata {scene.nodata:g}"
    return (
        f"{scene.path} {scene.width:,} x {scene.height:,}, {scene.count} bands {scene.dtype}, "
        f"{place}, {nodata}"
    )
