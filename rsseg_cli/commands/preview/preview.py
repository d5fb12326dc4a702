"""Picture of a scene as a model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.atomic_write import write_bytes, write_errors
from rsseg_cli.commands.fit.final_evaluation import shown_bands
from rsseg_cli.commands.model import model_file
from rsseg_cli.commands.options import parse_bands
from rsseg_cli.commands.preview.options import PreviewOptions
from rsseg_cli.contract import Bands
from rsseg_cli.errors import OutputExistsError, RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.charts import to_png
from rsseg_cli.report.scene_preview import BandView, SceneView, draw_preview
from rsseg_cli.training.checkpoint import load_model

SUFFIX = ".preview.png"
SIDE = 900
"""Longest side in pixels at which a scene is shown."""
FAR = 2.0
"""Smallest remarkable difference of a scene's mean from the training's, in standard deviations."""


@dataclass(frozen=True)
class BandSummary:
    """Statistics of one band of a scene and of the training data, in stored units."""

    name: str
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    model_mean: float | None
    model_std: float | None


@dataclass(frozen=True)
class Preview:
    """Result of `rsseg preview`.

    Attributes:
        picture: Path of the PNG.
        missing: Fraction of missing pixels.
        tile: Side of a tile in pixels.
        bands: Statistics per band, of the sampled pixels.
        remarks: Likely mistakes.
    """

    picture: str
    width: int
    height: int
    missing: float
    tile: int
    tiles: int
    bands: list[BandSummary]
    remarks: list[str]


def preview(options: PreviewOptions) -> Preview:
    """Draw a scene as a model reads it.

    Raises:
        RssegError: The scene cannot be read, or the number of bands is not the model's.
    """
    scene, model = options.scene, options.model
    target = options.output or Path(f"{scene.stem}{SUFFIX}")
    if target.resolve() == scene.resolve():
        raise RssegError("the picture would replace the scene", where=str(target), fix="another -o")
    if target.exists() and not options.overwrite:
        raise OutputExistsError(
            f"{target} already exists", where=str(target), fix="--overwrite, or another -o"
        )
    model_bands, side = (None, 512) if model is None else _bands_and_tile(model)
    with Scene.open(scene, bands=parse_bands(options.bands), nodata=options.nodata) as opened:
        if model_bands is not None and opened.count != len(model_bands):
            raise RssegError(
                f"{scene.name} has {counted(opened.count, 'band')}, the model reads "
                f"{len(model_bands)} ({' '.join(model_bands.names)})",
                where=f"{scene}, model {model}",
                fix="--bands with the file band of each, in this order",
            )
        samples, valid, step = subsample(opened, SIDE)
        tiling = Tiling(tile=options.tile or side, overlap=options.overlap)
        columns, rows = tiling.axis(opened.width), tiling.axis(opened.height)
        views, summaries = _summarise(opened, model_bands, samples, valid)
        picture = draw_preview(
            SceneView(
                title=f"{scene.name}, {opened.width:,} x {opened.height:,}, {opened.dtype}",
                samples=samples,
                valid=valid,
                rgb=_rgb(model_bands, [summary.name for summary in summaries]),
                step=step,
                columns=[columns.begin(index) for index in range(columns.count)],
                rows=[rows.begin(index) for index in range(rows.count)],
                tile=tiling.tile,
                bands=views,
            )
        )
        with write_errors("the picture", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, to_png(picture))
        return Preview(
            picture=str(target),
            width=opened.width,
            height=opened.height,
            missing=float(1 - valid.mean()),
            tile=tiling.tile,
            tiles=columns.count * rows.count,
            bands=summaries,
            remarks=_remarks(summaries, valid),
        )


def subsample(scene: Scene, side: int) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
    """Read every n-th pixel, with nodata and masks as in a prediction.

    Returns:
        Samples (C, h, w), valid pixels (h, w), and n.
    """
    step = -(-max(scene.width, scene.height) // side)
    rows = [scene.read(Window(0, y, scene.width, 1)) for y in range(step // 2, scene.height, step)]
    samples = np.concatenate([row[:, :, step // 2 :: step] for row, _ in rows], axis=1)
    return samples, np.concatenate([row[:, step // 2 :: step] for _, row in rows]), step


def _bands_and_tile(model: Path) -> tuple[Bands, int]:
    """Return the bands and the side of a tile of a model file."""
    _, about = load_model(model_file(model))
    return Bands.model_validate(about["bands"]), int(about["config"]["data"]["tile"])


def _summarise(
    scene: Scene, model: Bands | None, samples: NDArray[Any], valid: NDArray[np.bool_]
) -> tuple[list[BandView], list[BandSummary]]:
    names = model.names if model else [
        name or f"band {number}"
        for name, number in zip(scene.descriptions, scene.bands, strict=True)
    ]  # fmt: skip
    views, summaries = [], []
    for index, name in enumerate(names):
        values = samples[index][valid & np.isfinite(samples[index])].astype(np.float64)
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
        trained = (model.mean[index], model.std[index]) if model else None
        views.append(BandView(name, values, *(trained or (mean, std))))
        numbers = (mean, std, float(values.min()), float(values.max())) if len(values) else ()
        summaries.append(BandSummary(name, *(numbers or (None,) * 4), *(trained or (None, None))))
    return views, summaries


def _rgb(model: Bands | None, names: Sequence[str]) -> tuple[int, ...]:
    if model is not None:
        return shown_bands(model)
    lower = [name.lower() for name in names]
    if all(color in lower for color in ("red", "green", "blue")):
        return tuple(lower.index(color) for color in ("red", "green", "blue"))
    return (0, 1, 2) if len(names) >= 3 else (0,)


def _remarks(bands: Sequence[BandSummary], valid: NDArray[np.bool_]) -> list[str]:
    """Return likely mistakes: no valid pixel, constant bands, bands unlike the training's."""
    if not valid.any():
        return ["no pixel of the scene is valid: is the nodata value right (--nodata)?"]
    remarks = []
    for band in bands:
        if band.mean is None or band.std == 0:
            remarks.append(f"band {band.name} is constant")
        elif band.model_mean is not None and band.model_std:
            distance = (band.mean - band.model_mean) / band.model_std
            if abs(distance) > FAR:
                remarks.append(
                    f"band {band.name} has mean {band.mean:.4g}, in training it was "
                    f"{band.model_mean:.4g} ({distance:+.1f} std): another scale, sensor or order?"
                )
    return remarks
