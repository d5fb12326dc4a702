"""The demo: write sample data, fit on one region, predict the other and score the map."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rsseg_cli.commands.evaluate.evaluate import evaluate_map
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit import job as jobs
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.model import pick_device
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.predict import predict
from rsseg_cli.config import resolve
from rsseg_cli.data.source import Source
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.demo.baseline import nearest_mean
from rsseg_cli.demo.sample import CLASSES, REGIONS, write_sample
from rsseg_cli.errors import OutputExistsError
from rsseg_cli.report.charts import to_png
from rsseg_cli.report.map_figure import quicklook

SETTINGS = {
    "training.steps": 300,
    "training.batch": 4,
    "training.validate_every": 100,
    "training.num_workers": 1,
    "optimizer.lr": 2.0e-3,
    "optimizer.backbone_lr": "null",
    "optimizer.warmup": 20,
    "data.tile": 128,
    "head.width": 48,
    "head.upsamplings": 1,
    "augment.scale": "[0.8, 1.25]",
    "augment.gain": 0.2,
    "augment.offset": 0.3,
    "augment.band_gain": 0.15,
    "augment.band_offset": 0.4,
}
"""A minute of training on two cores; the radiometric augmentation covers the haze."""
BANDS_SHOWN = (4, 3, 2)
"""Bands of the quicklook: near infrared, red and green as RGB."""


@dataclass(frozen=True)
class Demo:
    """Files and scores of the demo."""

    map: str
    report: str
    quicklook: str
    miou: float
    baseline_miou: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the keys of `demo --json`."""
        return asdict(self)

    def show(self) -> None:
        """Print files and scores."""
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"map        {self.map}")
        console.print(f"report     {self.report}")
        console.print(f"quicklook  {self.quicklook}")
        console.print(
            f"mIoU {100 * self.miou:.1f} on a scene of an unseen region; the nearest class mean "
            f"per pixel has {100 * self.baseline_miou:.1f} ({self.seconds:.0f} s)"
        )


def run(
    folder: Path, *, seed: int = 42, device: str = "auto", overwrite: bool = False, quiet: bool
) -> Demo:
    """Run the demo; the same seed gives the same scores on one machine.

    Args:
        folder: Output folder of the sample, the run, the map and the report.
        seed: Seed of the sample and of the training.
        device: auto, cpu, cuda or cuda:N.
        overwrite: Replace an earlier demo.
        quiet: Show no progress.

    Raises:
        OutputExistsError: There is an earlier demo in the folder.
    """
    started = time.perf_counter()
    if (folder / "run").exists() and not overwrite:
        raise OutputExistsError(
            f"{folder} contains an earlier demo",
            where=str(folder),
            fix="--overwrite, or another -o",
        )
    pick_device(device)  # raises before anything is written
    seen, unseen = write_sample(folder / "sample", seed=seed)
    config = resolve(
        method="full",
        file=None,
        sources=[str(seen)],
        backbone="vit_tiny",
        head="linear",
        changes=[f"{key}={value}" for key, value in SETTINGS.items()] + [f"training.seed={seed}"],
    )
    options = FitOptions(output=folder / "run", device=device, overwrite=overwrite, quiet=quiet)
    job = prepare_fit(config, options)
    model = Path(jobs.run(job).model)
    scene = unseen / "images" / f"{REGIONS[1].name}_2.tif"
    truth = unseen / "labels" / scene.name
    target = folder / f"{scene.stem}.seg.tif"
    predict(
        PredictOptions(
            scenes=(str(scene),),
            output=str(target),
            model=model,
            device=device,
            overwrite=overwrite,
            quiet=quiet,
        )
    )
    report = evaluate_map(EvaluateOptions(prediction=target, truth=truth, ignore=(0,)))
    picture = to_png(quicklook(target, CLASSES, image=scene, truth=truth, rgb=BANDS_SHOWN))
    (folder / "quicklook.png").write_bytes(picture)
    report.pictures = {"image, truth, map and errors": picture}
    report.write(folder / "report")
    assert report.scores is not None
    return Demo(
        map=str(target),
        report=str(folder / "report" / "report.html"),
        quicklook=str(folder / "quicklook.png"),
        miou=report.scores.miou or 0.0,
        baseline_miou=_baseline(job, unseen, scene.stem),
        seconds=time.perf_counter() - started,
    )


def _baseline(job: jobs.RunJob, unseen: Path, scene: str) -> float:
    """Score the nearest class mean of the training pixels on the predicted scene."""
    source = Source.locate(str(unseen))
    pairs = [pair for pair in source.pairs() if pair.name == scene]
    bands = job.sources.bands
    train = CoveringTiles(job.sources.train, bands, tile=256, batch=4)
    test = CoveringTiles([(source.opener, pairs)], bands, tile=256, batch=4)
    return nearest_mean(train, test, CLASSES)
