"""`preview`: a picture of what a model will see of a scene, before hours go into mapping it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.bands import Bands
from rsseg_cli.errors import OutputExistsError, RssegError
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.pictures import to_png
from rsseg_cli.report.preview import BandView, SceneView, draw_preview
from rsseg_cli.report.report import replace_file, writing
from rsseg_cli.run.request import PredictOptions
from rsseg_cli.run.review import shown_bands
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.words import counted

SUFFIX = ".preview.png"
SIDE = 900
"""Longest side in pixels at which a scene is shown."""
FAR = 2.0
"""Standard deviations of the training by which a scene's mean may differ before it is said."""


@dataclass(frozen=True)
class BandSummary:
    """One band of a scene beside what the model knows; all in stored units."""

    name: str
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    model_mean: float | None
    model_std: float | None


@dataclass(frozen=True)
class Preview:
    """What `preview --json` prints.

    Attributes:
        picture: The PNG.
        width: Columns of the scene.
        height: Rows of the scene.
        missing: Share of pixels that are not there.
        tile: Side of a tile.
        tiles: How many there will be.
        bands: Its bands, over the pixels that the picture shows.
        remarks: What looks wrong.
    """

    picture: str
    width: int
    height: int
    missing: float
    tile: int
    tiles: int
    bands: list[BandSummary]
    remarks: list[str]

    def document(self) -> dict[str, Any]:
        """Give the machine-readable form."""
        return asdict(self)


def preview(
    scene: Path,
    *,
    model: Path | None = None,
    output: Path | None = None,
    bands: str | None = None,
    nodata: float | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    overwrite: bool = False,
) -> Preview:
    """Draw a scene as a model will read it.

    Args:
        scene: The scene.
        model: Run folder or model file: its bands, mean, std and tiles; the scene's own when None.
        output: The PNG; SCENE.preview.png in the working folder when None.
        bands: File bands in the model's order, from 1, comma separated.
        nodata: Value of missing samples in place of the file's.
        tile: Side of a tile; the model's own, else 512.
        overlap: Share of a tile that overlaps its neighbour.
        overwrite: Replace a picture that is there.

    Raises:
        RssegError: The scene cannot be read, or has not as many bands as the model wants.
    """
    target = output or Path(f"{scene.stem}{SUFFIX}")
    if target.resolve() == scene.resolve():
        raise RssegError("the picture would replace the scene", where=str(target), fix="another -o")
    if target.exists() and not overwrite:
        raise OutputExistsError(
            f"{target} is there already", where=str(target), fix="--overwrite, or another -o"
        )
    known, side = (None, 512) if model is None else _wanted(model)
    with Scene.open(scene, bands=PredictOptions(bands=bands).file_bands(), nodata=nodata) as opened:
        if known is not None and opened.count != len(known):
            raise RssegError(
                f"{scene.name} has {counted(opened.count, 'band')}, the model wants {len(known)} "
                f"({' '.join(known.names)})",
                where=f"{scene}, model {model}",
                fix="--bands with one file band for each, in this order",
            )
        samples, valid, step = sampled(opened, SIDE)
        tiling = Tiling(tile=tile or side, overlap=overlap)
        across, down = tiling.axis(opened.width), tiling.axis(opened.height)
        views, summaries = _bands(opened, known, samples, valid)
        picture = draw_preview(
            SceneView(
                title=f"{scene.name}, {opened.width:,} x {opened.height:,}, {opened.dtype}",
                samples=samples,
                valid=valid,
                rgb=_shown(known, [one.name for one in summaries]),
                step=step,
                columns=[across.begin(index) for index in range(across.count)],
                rows=[down.begin(index) for index in range(down.count)],
                tile=tiling.tile,
                bands=views,
            )
        )
        with writing("the picture", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, to_png(picture))
        return Preview(
            picture=str(target),
            width=opened.width,
            height=opened.height,
            missing=float(1 - valid.mean()),
            tile=tiling.tile,
            tiles=across.count * down.count,
            bands=summaries,
            remarks=_doubts(summaries, valid),
        )


def sampled(scene: Scene, side: int) -> tuple[NDArray[Any], NDArray[np.bool_], int]:
    """Read every n-th pixel, with the same nodata and masks as when the scene is mapped.

    Returns:
        Samples (C, h, w), valid pixels (h, w), and n.
    """
    step = -(-max(scene.width, scene.height) // side)
    rows = [scene.read(Window(0, y, scene.width, 1)) for y in range(step // 2, scene.height, step)]
    samples = np.concatenate([one[:, :, step // 2 :: step] for one, _ in rows], axis=1)
    return samples, np.concatenate([one[:, step // 2 :: step] for _, one in rows]), step


def _wanted(model: Path) -> tuple[Bands, int]:
    """Read the bands and the side of a tile from a model file."""
    _, about = load_model(model / "model.safetensors" if model.is_dir() else model)
    return Bands.model_validate(about["bands"]), int(about["config"]["data"]["tile"])


def _bands(
    scene: Scene, known: Bands | None, samples: NDArray[Any], valid: NDArray[np.bool_]
) -> tuple[list[BandView], list[BandSummary]]:
    names = known.names if known else [
        name or f"band {number}"
        for name, number in zip(scene.descriptions, scene.bands, strict=True)
    ]  # fmt: skip
    views, summaries = [], []
    for index, name in enumerate(names):
        values = samples[index][valid & np.isfinite(samples[index])].astype(np.float64)
        mean, std = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
        learnt = (known.mean[index], known.std[index]) if known else None
        views.append(BandView(name, values, *(learnt or (mean, std))))
        numbers = (mean, std, float(values.min()), float(values.max())) if len(values) else ()
        summaries.append(BandSummary(name, *(numbers or (None,) * 4), *(learnt or (None, None))))
    return views, summaries


def _shown(known: Bands | None, names: Sequence[str]) -> tuple[int, ...]:
    if known is not None:
        return shown_bands(known)
    lower = [name.lower() for name in names]
    if all(color in lower for color in ("red", "green", "blue")):
        return tuple(lower.index(color) for color in ("red", "green", "blue"))
    return (0, 1, 2) if len(names) >= 3 else (0,)


def _doubts(bands: Sequence[BandSummary], valid: NDArray[np.bool_]) -> list[str]:
    """Say what looks wrong."""
    if not valid.any():
        return ["no pixel of the scene is there: is the nodata value right (--nodata)?"]
    found = []
    for one in bands:
        if one.mean is None or one.std == 0:
            found.append(f"band {one.name} is the same everywhere")
        elif one.model_mean is not None and one.model_std:
            distance = (one.mean - one.model_mean) / one.model_std
            if abs(distance) > FAR:
                found.append(
                    f"band {one.name} has mean {one.mean:.4g}, in training it was "
                    f"{one.model_mean:.4g} ({distance:+.1f} std): another scale, sensor or order?"
                )
    return found
