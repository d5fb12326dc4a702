"""Calls the command line in this process, and small labelled scenes to call it with."""

from __future__ import annotations

import io
import json
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from scenes import write_raster

from rsseg_cli.cli import main

BANDS = {"blue": 490.0, "green": 560.0, "nir": 842.0}
CLASSES = {1: "water", 2: "forest", 5: "town"}
SPECTRA = {1: (900, 700, 200), 2: (300, 600, 3000), 5: (1500, 1700, 1900)}
"""Stored values (reflectance x 10000) of each class."""
SMALL = [
    "--backbone", "vit_tiny", "--head", "linear", "--tile", "32", "--batch", "2",
    "--set", "training.num_workers=0", "--set", "augment.scale=[1.0, 1.0]", "--device", "cpu",
]  # fmt: skip
"""Options of `fit` that make it quick."""


@dataclass
class Call:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON object on stdout; fails if there is anything else."""
        return json.loads(self.out)


def rsseg(*args: str | Path, stdin: str = "") -> Call:
    """Run `rsseg ARGS`. Errors other than the user's are raised: they would be tracebacks."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        warnings.catch_warnings(),
        patch.object(sys, "argv", ["rsseg", *map(str, args)]),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Call(code, out.getvalue(), err.getvalue())


def ground(height: int = 96, width: int = 112, seed: int = 0) -> NDArray[np.uint8]:
    """Return class ids (h, w) in squares of 16 pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(list(CLASSES), (-(-height // 16), -(-width // 16)))
    return coarse.repeat(16, 0).repeat(16, 1)[:height, :width].astype(np.uint8)


def seen(labels: NDArray[np.uint8], dtype: str = "uint16", seed: int = 0) -> NDArray[Any]:
    """Return the samples (3, h, w) of a scene with these labels."""
    spectra = np.zeros((256, 3))
    for number, spectrum in SPECTRA.items():
        spectra[number] = spectrum
    noise = np.random.default_rng(seed).normal(0, 40, (3, *labels.shape))
    return np.clip(spectra[labels].transpose(2, 0, 1) + noise, 1, 65_535).astype(dtype)


def write_pair(root: Path, name: str, *, seed: int = 0, size: tuple[int, int] = (96, 112)) -> None:
    """Write `images/NAME.tif` and `labels/NAME.tif`."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    labels = ground(*size, seed=seed)
    write_raster(root / "images" / f"{name}.tif", seen(labels, seed=seed))
    write_raster(root / "labels" / f"{name}.tif", labels[None])


def describe(root: Path, *, bands: dict[str, float] = BANDS, scale: str = "1.0e-4") -> Path:
    """Write the `dataset.yaml` of scenes by `write_pair`."""
    lines = [f"name: {root.name}", f"scale: {scale}", "bands:"]
    lines += [f"- {{name: {name}, wavelength_nm: {centre}}}" for name, centre in bands.items()]
    lines += ["classes:"]
    lines += [
        f"- {{id: {number}, name: {name}, color: [{40 * number}, 99, 7]}}"
        for number, name in CLASSES.items()
    ]
    path = root / "dataset.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_city(root: Path, scenes: int = 2) -> Path:
    """Write a described folder of scenes `a`, `b`, ..."""
    for index in range(scenes):
        write_pair(root, "abcdefgh"[index], seed=index)
    describe(root)
    return root
