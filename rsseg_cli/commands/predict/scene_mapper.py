"""A fitted model, made ready to map scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli import __version__
from rsseg_cli.choices import Format
from rsseg_cli.commands.model import LoadedModel, open_model, pick_device
from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.predict import dry_run as survey
from rsseg_cli.commands.predict import paths as names
from rsseg_cli.commands.predict.explain import choose
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.outputs import read_area, scene_outputs
from rsseg_cli.commands.predict.progress import Line
from rsseg_cli.commands.predict.provenance import file_digest, identity, journal_digest, made_before
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, SceneResult
from rsseg_cli.predict.pipeline import Infer
from rsseg_cli.predict.plan import PART_PIXELS, Tiling
from rsseg_cli.predict.team import Team
from rsseg_cli.predict.turns import Turned
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.settings import Json
from rsseg_cli.training.precision import Precision

TILES_PX = {"cuda": 16 * 512 * 512, "cpu": 2 * 512 * 512}
"""Pixels of a batch where the user asks for none; larger ones fall out of a CPU's caches."""
MOST_PX = {"cuda": 64 * 512 * 512, "cpu": 4 * 512 * 512}
"""Pixels up to which batches are tried, where there is enough to do."""
MOST_TILES = {"cuda": 1024, "cpu": 16}
"""The same in tiles, as there is a cost of a tile, too."""
COMPILE_TILES = 2000
"""Tiles of a scene from which on compiling the model pays, where it was asked for."""


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
        fitted: LoadedModel,
        device: torch.device,
        *,
        gain: float = 1.0,
        precision: Format | None = None,
    ) -> None:
        self.model, self.gain = fitted.model.to(device).eval(), gain
        wanted = precision or fitted.config.training.precision
        self.precision = Precision.choose(wanted, device)
        self._infer = self.model.infer

    def compile(self, wanted: bool) -> None:
        """Compile the model for the one shape that batches of a scene have, or do not any more."""
        plain = self.model.infer
        self._infer = torch.compile(plain, dynamic=False) if wanted else plain

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) of stored values: (B, K, T, T)."""
        with torch.inference_mode(), self.precision.autocast():
            return self._infer(tiles if self.gain == 1.0 else tiles * self.gain)


class Mapper:
    """A model, made ready to map one scene after the other as was asked.

    Args:
        options: The options of `predict`.
        line: Told what happens.
        team: The processes of which this is one.
    """

    def __init__(self, options: PredictOptions, line: Line, team: Team) -> None:
        self.options, self.line = options, line
        self.device = own_device(options.device, team)
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
            self.infer = Turned(self._model, options.tta)
        explain = tuple(dict.fromkeys(options.explain))
        self.explanations = choose(explain, options.block, self.fitted, self.precision)
        line.say(f"model    {self.fitted.describe()}")

    def open(self, path: str) -> Scene:
        """Open a scene as the model wants it."""
        bands = parse_bands(self.options.bands)
        return open_scene(path, self.fitted, bands=bands, nodata=self.options.nodata)

    def shared(self, paths: Sequence[str], processes: int) -> list[int]:
        """Choose the scenes that processes had better map together, by their numbers."""
        if processes == 1 or len(paths) < processes:
            return list(range(len(paths))) if processes > 1 else []
        return [n for n, path in enumerate(paths) if self._pixels(path) > processes * PART_PIXELS]

    def _pixels(self, path: str) -> int:
        try:
            with Scene.open(path, warn=False) as scene:
                return scene.width * scene.height
        except RssegError:
            return 0  # said when its turn comes

    def map(self, path: str, target: names.Target, team: Team) -> SceneResult:
        """Map a scene, unless an earlier run has done it all.

        Args:
            path: The scene.
            target: Where its maps go.
            team: Processes that make this call together.
        """
        with ExitStack() as stack:
            with team.agreed():
                scene = stack.enter_context(self.open(path))
                area = read_area(self.options, scene)
                journal = self.journal(scene)
            self.line.say(f"scene    {_describe(scene)}")
            outputs = scene_outputs(self.options, target, self.fitted, self.tags(scene, journal))
            tiling = self._compile_for(scene, area, team)
            result = self._map(scene, self.infer, outputs, journal, tiling, area, team)
            more = self._beside(scene, outputs, target, journal, area, team)
            return replace(result, more=tuple(str(path) for path in more))

    def _compile_for(self, scene: Scene, area: Area | None, team: Team) -> Tiling:
        """Compile the model if that was asked for and pays, and say how the scene is cut then."""
        pays = self._compiles(scene, area, team.size)
        self._model.compile(bool(pays))
        if pays is not None:
            self.line.say(
                "compile  the first batch takes a while"
                if pays
                else f"compile  no: below {COMPILE_TILES:,} tiles it takes longer than it saves"
            )
        # Each batch that is tried would be compiled anew.
        return replace(self.tiling, most=None) if pays else self.tiling

    def _compiles(self, scene: Scene, area: Area | None, processes: int) -> bool | None:
        """Tell whether compiling pays for a scene; None where nobody asked for it."""
        if not self.options.compile:
            return None
        box = Window(0, 0, scene.width, scene.height) if area is None else area.box
        across = self.tiling.axis(scene.width).touching(box.x, box.right)
        down = self.tiling.axis(scene.height).touching(box.y, box.bottom)
        return len(across) * len(down) >= COMPILE_TILES * processes

    def _map(
        self,
        scene: Scene,
        infer: Infer,
        outputs: Outputs,
        journal: dict[str, str],
        tiling: Tiling,
        area: Area | None,
        team: Team,
    ) -> SceneResult:
        """Make maps of a scene, unless an earlier run has."""

        def is_there() -> Json:
            if self.options.resume and made_before(outputs.map, journal, self.options.overwrite):
                return True
            survey.warn_of_doubts(scene, self.fitted)
            survey.require_disk(scene, outputs, area)
            return False

        if team.tell(is_there):
            self.line.say(f"{outputs.map} is there already, of the same model and options")
            return SceneResult(
                scene.path, str(outputs.map), scene.width, scene.height, status="there"
            )
        with self.line.scene(scene.width * scene.height) as progress:
            return predict_scene(
                scene, infer, outputs, tiling=tiling, device=self.device, area=area,
                journal=journal, resume=self.options.resume, progress=progress, team=team,
            )  # fmt: skip

    def _beside(
        self,
        scene: Scene,
        outputs: Outputs,
        target: names.Target,
        journal: dict[str, str],
        area: Area | None,
        team: Team,
    ) -> Iterator[Path]:
        """Make what goes with a class map, and name all that lies beside it."""
        wanted = [(outputs, self.fitted.classes)]
        for one in self.explanations:
            self.line.say(f"explain  {one.name} at block {one.block}")
            explained = one.outputs(outputs, target.stem, journal)
            self._map(scene, one, explained, one.journal(journal), self._nearest, area, team)
            wanted.append((explained, list(one.things)))
        for made, classes in wanted if team.leads else ():
            yield from (one.path for one in made.made() if one.shown and one.path != target.map)
            if self.options.quicklook:
                from rsseg_cli.commands.predict.quicklook import (
                    quicklook_beside,  # matplotlib takes a second
                )

                look = target.look(made.map)
                yield quicklook_beside(made.map, look, classes, scene, self.fitted.model.bands)

    @property
    def _nearest(self) -> Tiling:
        """How a scene is cut for explanations: numbers of things have no mean to blend into."""
        return replace(self.tiling, blend=False)

    def plan(self, path: str, target: names.Target) -> survey.Survey:
        """Say what mapping a scene would take."""
        with self.open(path) as scene:
            outputs = scene_outputs(self.options, target, self.fitted, {})
            area = read_area(self.options, scene)
            compiles = self._compiles(scene, area, 1)
            tiling = replace(self.tiling, most=None) if compiles else self.tiling
            passes = [(self.infer, outputs, tiling)]
            for one in self.explanations:
                passes.append((one, one.outputs(outputs, target.stem, {}), self._nearest))
            found = [survey.survey(scene, self.fitted, *each, self.device, area) for each in passes]
            return replace(reduce(survey.Survey.then, found), compile=compiles)

    def journal(self, scene: Scene) -> dict[str, str]:
        """Name all that the maps of a scene depend on."""
        options, tiling = self.options, self.tiling
        about = {
            "the model": file_digest(self.fitted.path),
            "the backbone": str(self.fitted.about["fingerprint"]),
            "the input": identity(scene.path),
            "--aoi": "" if options.aoi is None else identity(str(options.aoi)),
            "--polygons": str(options.polygons is not None),
            "--soft": options.soft and len(self.fitted.classes) == 2,
            "--tile": tiling.tile,
            "the precision": str(self.precision.dtype),
            "the version": __version__,
        }
        same = ("overlap", "tta", "bands", "nodata", "bbox", "bbox_crs", "probabilities",
                "confidence", "reject", "sieve", "simplify", "format", "compile")  # fmt: skip
        about |= {f"--{name.replace('_', '-')}": getattr(options, name) for name in same}
        about["--co"] = " ".join(options.creation_options)
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


def tiling_for(
    fitted: LoadedModel,
    device: torch.device,
    *,
    tile: int | None,
    overlap: float,
    batch: int | None,
) -> Tiling:
    """Choose how scenes are cut: by default into tiles as large as those of the training."""
    wanted, multiple = tile or fitted.config.data.tile, fitted.model.multiple
    side, kind = -(-wanted // multiple) * multiple, device.type
    usual, most = (
        min(MOST_TILES[kind], max(1, pixels[kind] // side**2)) for pixels in (TILES_PX, MOST_PX)
    )
    return Tiling(
        tile=side, overlap=overlap, batch=batch or usual, most=None if batch else most,
        on_host=kind == "cpu",
    )  # fmt: skip


def own_device(wanted: str, team: Team) -> torch.device:
    """Choose where this process computes: each of a team has a GPU of its own, if there are any.

    Raises:
        RssegError: The device is unknown, or not there.
    """
    device = pick_device(wanted)
    if team.size == 1 or device.type == "cpu" or device.index is not None:
        return device
    return torch.device("cuda", team.local_rank % torch.cuda.device_count())


def open_scene(
    path: str,
    fitted: LoadedModel,
    *,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
) -> Scene:
    """Open a scene as the model wants it.

    Raises:
        RssegError: Its bands are not the model's.
    """
    wanted = fitted.model.bands
    # Warnings come with the second opening below.
    with Scene.open(path, bands=bands, nodata=nodata, warn=False) as scene:
        if scene.count != len(wanted):
            names = " ".join(name or "?" for name in scene.descriptions)
            raise RssegError(
                f"{Path(path).name} has {counted(scene.count, 'band')} ({names}), the model wants "
                f"{len(wanted)} ({' '.join(wanted.names)})",
                where=f"{path}, model {fitted.name}",
                fix=f"a {len(wanted)}-band scene, or --bands if the order is known, or a model "
                "fitted on these bands",
            )
    return Scene.open(path, bands=bands, nodata=nodata, fill=wanted.mean)


def _describe(scene: Scene) -> str:
    gsd = abs(scene.transform.determinant) ** 0.5  # turned or not
    place = f"{scene.crs.to_string()}, {gsd:.4g} per pixel" if scene.crs else "no CRS"
    nodata = "no nodata" if scene.nodata is None else f"nodata {scene.nodata:g}"
    return (
        f"{scene.path} {scene.width:,} x {scene.height:,}, "
        f"{counted(scene.count, 'band')} {scene.dtype}, {place}, {nodata}"
    )
