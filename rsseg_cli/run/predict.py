"""`predict`: a fitted model over whole scenes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsseg_cli import __version__
from rsseg_cli.data.layout import RASTER_SUFFIXES
from rsseg_cli.errors import OutputExistsError, PartialFailure, RssegError
from rsseg_cli.predict.engine import Outputs, SceneResult, predict_scene
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.scene import Scene
from rsseg_cli.run.live import Line
from rsseg_cli.run.model import Fitted, open_model, pick_device
from rsseg_cli.training.precision import Precision

SUFFIX = ".seg.tif"
"""What a map's name ends with."""
TILES_PX = {"cuda": 16 * 512 * 512, "cpu": 4 * 512 * 512}
"""Pixels of a batch where the user asks for none."""


class ModelInfer:
    """A fitted model as the engine wants it.

    Args:
        fitted: The opened model.
        device: Where it runs.
        gain: Factor that brings stored values to the scale that the model knows.
    """

    def __init__(self, fitted: Fitted, device: torch.device, *, gain: float = 1.0) -> None:
        self.model, self.gain = fitted.model.to(device).eval(), gain
        self.precision = Precision.choose(fitted.config.training.precision, device)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) of stored values: (B, K, T, T)."""
        with torch.inference_mode(), self.precision.autocast():
            return self.model.infer(tiles if self.gain == 1.0 else tiles * self.gain)


def predict(
    scenes: Sequence[str],
    *,
    model: Path | None = None,
    output: Path | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    batch: int | None = None,
    bands: str | None = None,
    nodata: float | None = None,
    memory_mb: int | None = None,
    weights: Path | None = None,
    threads: int = 2,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
    written: Callable[[str], object] | None = None,
) -> list[SceneResult]:
    """Map scenes one after the other.

    A single scene's mistake is raised; of several, each result says what became of it.

    Args:
        scenes: Files, folders, patterns, GDAL names, or `-` for a list on stdin.
        model: Run folder or model file; the newest finished run when None.
        output: A file for one scene, else a folder; beside the call when None.
        tile: Side of a tile; that of the training when None.
        overlap: Share of a tile that overlaps its neighbour.
        batch: Tiles per pass.
        bands: File bands in the model's order, from 1, comma separated.
        nodata: Value of missing samples in place of the file's.
        memory_mb: Bound on the memory of the process.
        weights: Weights file of the backbone, if it has moved.
        threads: Readers.
        device: auto, cpu, cuda or cuda:N.
        overwrite: Replace maps that are there.
        quiet: No progress.
        written: Told the path of every map, as soon as it is there.

    Raises:
        RssegError: Before anything is computed: no model, no scene, an output that is there.
    """
    paths = expand(scenes)
    outputs = [_output(path, output, single=len(paths) == 1) for path in paths]
    _check_outputs(paths, outputs, overwrite)
    where = pick_device(device)
    fitted = open_model(model, weights=weights)
    chosen = None if bands is None else _numbers(bands)
    tiling = tiling_for(fitted, where, tile=tile, overlap=overlap, batch=batch)
    tiling = replace(tiling, readers=threads, memory_mb=memory_mb)
    infer, results = ModelInfer(fitted, where), []
    line = Line(quiet=quiet)
    line.say(f"model    {fitted.describe()}")
    for path, target in zip(paths, outputs, strict=True):
        try:
            with open_scene(path, fitted, bands=chosen, nodata=nodata) as scene:
                line.say(f"scene    {_describe(scene)}")
                made = Outputs(
                    map=target,
                    classes=fitted.classes,
                    overwrite=overwrite,
                    tags=_tags(fitted, scene, tiling),
                )
                with line.scene(scene.width * scene.height) as progress:
                    result = predict_scene(
                        scene, infer, made, tiling=tiling, device=where, progress=progress
                    )
        except RssegError as error:
            if len(paths) == 1:
                raise
            line.say(str(error))
            result = SceneResult(input=path, output=None, status="failed", error=error.what)
        results.append(result)
        if result.output is not None and written is not None:
            written(result.output)
    return results


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


def expand(texts: Sequence[str]) -> list[str]:
    """List the scenes meant by files, folders, patterns and `-` (stdin).

    Raises:
        RssegError: Nothing is there.
    """
    found: list[str] = []
    for text in texts:
        if text == "-":
            found += [line.strip() for line in sys.stdin if line.strip()]
        elif Path(text).is_dir():
            inside = sorted(Path(text).iterdir())
            found += [
                str(path)
                for path in inside
                if path.suffix.lower() in RASTER_SUFFIXES and not path.name.endswith(SUFFIX)
            ]
        elif has_magic(text) and not Path(text).exists():
            matches = glob(text)  # noqa: PTH207 - Path.glob refuses absolute patterns
            found += sorted(path for path in matches if not path.endswith(SUFFIX))
        else:
            found.append(text)
    if not found:
        raise RssegError(
            "there is no scene", where=" ".join(texts), fix="a file, a folder, or a quoted pattern"
        )
    return found


def _output(scene: str, output: Path | None, *, single: bool) -> Path:
    name = f"{Path(scene).stem}{SUFFIX}"
    if output is None:
        return Path(name)
    if single and not output.is_dir() and output.suffix:
        return output
    return output / name


def _check_outputs(scenes: Sequence[str], outputs: Sequence[Path], overwrite: bool) -> None:
    twice = {path for path in outputs if outputs.count(path) > 1}
    if twice:
        names = [s for s, path in zip(scenes, outputs, strict=True) if path in twice]
        raise RssegError(
            f"two scenes would become {min(twice)}",
            where=", ".join(names),
            fix="one call per folder, each with its own -o",
        )
    there = [path for path in outputs if path.exists()]
    if there and not overwrite:
        raise OutputExistsError(
            f"{there[0]} is there already", where=str(there[0]), fix="--overwrite, or another -o"
        )
    for path in outputs:
        if not path.parent.is_dir():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RssegError(
                    f"the folder cannot be made: {error.strerror}",
                    where=str(path.parent),
                    fix="another -o",
                ) from error


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RssegError(
            f"--bands {text} is no list of band numbers", where="--bands", fix="e.g. 4,3,2,1"
        ) from error


def open_scene(
    path: str, fitted: Fitted, *, bands: Sequence[int] | None = None, nodata: float | None = None
) -> Scene:
    """Open a scene as the model wants it.

    Raises:
        RssegError: Its bands are not the model's.
    """
    wanted = fitted.model.bands
    scene = Scene.open(path, bands=bands, nodata=nodata, fill=wanted.mean)
    if scene.count != len(wanted):
        names = " ".join(name or "?" for name in scene.descriptions)
        scene.close()
        raise RssegError(
            f"{Path(path).name} has {scene.count} bands ({names}), the model wants "
            f"{len(wanted)} ({' '.join(wanted.names)})",
            where=f"{path}, model {fitted.name}",
            fix=f"a {len(wanted)}-band scene, or --bands if the order is known, or a model "
            "fitted on these bands",
        )
    return scene


def _describe(scene: Scene) -> str:
    gsd = abs(scene.transform.a)
    place = f"{scene.crs.to_string()}, {gsd:g} per pixel" if scene.crs else "no CRS"
    nodata = "no nodata" if scene.nodata is None else f"nodata {scene.nodata:g}"
    return (
        f"{scene.path} {scene.width:,} x {scene.height:,}, {scene.count} bands {scene.dtype}, "
        f"{place}, {nodata}"
    )


def _tags(fitted: Fitted, scene: Scene, tiling: Tiling) -> dict[str, str]:
    about: dict[str, Any] = {
        "SOFTWARE": f"rsseg {__version__}",
        "MODEL": fitted.name,
        "BACKBONE": getattr(fitted.config.backbone, "name", ""),
        "BACKBONE_FINGERPRINT": fitted.about["fingerprint"],
        "METHOD": fitted.config.method.name,
        "TILE": tiling.tile,
        "OVERLAP": tiling.overlap,
        "INPUT": scene.path,
    }
    return {f"RSSEG_{key}": str(value) for key, value in about.items()}
