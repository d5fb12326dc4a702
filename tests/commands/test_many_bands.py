"""A hyperspectral scene goes through fit, predict and evaluate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from scenes import write_raster

from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.job import run
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.predict import predict
from rsseg_cli.config import resolve

BANDS = 32
SETTINGS = [
    "method.depth=off",
    "method.tokens=8",
    "method.rank=4",
    "method.experts=3",
    "data.tile=32",
    "training.steps=3",
    "training.batch=2",
    "training.validate_every=3",
    "training.num_workers=0",
]


def write_dataset(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    label = np.repeat(np.repeat(rng.integers(1, 4, (10, 12)), 8, 0), 8, 1).astype(np.uint8)
    spectra = rng.uniform(200, 3000, (4, BANDS))
    image = spectra[label].transpose(2, 0, 1) + rng.normal(0, 50, (BANDS, *label.shape))
    write_raster(folder / "images" / "a.tif", image.astype(np.uint16))
    write_raster(folder / "labels" / "a.tif", label[None])
    lines = ["name: hyper", "scale: 1.0e-4", "bands:"]
    lines += [f"- {{name: b{i}, wavelength_nm: {450 + 15 * i}}}" for i in range(BANDS)]
    lines += ["classes:"]
    lines += [f"- {{id: {i}, name: class{i}, color: [{i}, 0, 0]}}" for i in (1, 2, 3)]
    (folder / "dataset.yaml").write_text("\n".join(lines) + "\n")
    return folder


def test_thirty_two_bands(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "hyper")
    config = resolve(
        method="spectralmoe",
        file=None,
        sources=[str(data)],
        backbone="vit_tiny",
        head="linear",
        changes=SETTINGS,
    )
    fitted = run(prepare_fit(config, FitOptions(output=tmp_path / "run", quiet=True)))
    scene, target = data / "images" / "a.tif", tmp_path / "a.seg.tif"
    model = Path(fitted.model)
    predict(PredictOptions(scenes=(str(scene),), output=str(target), model=model, quiet=True))
    with rasterio.open(target) as made, rasterio.open(scene) as given:
        assert made.shape == given.shape
        assert made.transform == given.transform
        assert set(np.unique(made.read(1))) <= {1, 2, 3}
    report = evaluate_model(
        EvaluateOptions(model=Path(fitted.model), on=(f"{data}:val",), quiet=True)
    )
    assert report.scores is not None
    assert report.scores.pixels > 0
