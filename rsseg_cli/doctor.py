"""Checks of the machine: packages, GPU, GDAL, caches, disk and data."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rsseg_cli import __version__, presets
from rsseg_cli.number_format import counted

NEEDED_GB = 5.0
"""Free space below which runs and caches will soon be in trouble."""


@dataclass(frozen=True)
class MachineCheck:
    """Result of one check of the machine."""

    subject: str
    state: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the machine-readable form."""
        return asdict(self)


def examine(*, data_root: Path | None, runs: Path) -> list[MachineCheck]:
    """Run all checks; nothing is changed."""
    return [
        MachineCheck("rsseg", "ok", __version__),
        *_torch(),
        *_packages(),
        *_gdal(),
        *_hub(),
        *_disk(runs),
        *_data(data_root),
    ]


def _torch() -> Iterator[MachineCheck]:
    import torch

    yield MachineCheck("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            memory = f"{card.total_memory / 2**30:.0f} GB"
            formats = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
            yield MachineCheck(f"cuda:{index}", "ok", f"{card.name}, {memory}, trains in {formats}")
        return
    built = torch.version.cuda
    if built:
        text = f"no GPU is seen (torch was built for CUDA {built}); everything runs on the CPU"
        yield MachineCheck("cuda", "warn", text, "nvidia-smi: is the driver there and new enough?")
    else:
        text = "this torch was built without CUDA; everything runs on the CPU"
        yield MachineCheck("cuda", "warn", text, "pip install --force-reinstall torch torchvision")


def _packages() -> Iterator[MachineCheck]:
    for name in ("timm", "rasterio", "geopandas", "shapely", "pydantic"):
        try:
            yield MachineCheck(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield MachineCheck(name, "fail", "is not installed", f"pip install {name}")


def _gdal() -> Iterator[MachineCheck]:
    import rasterio
    from rasterio.drivers import raster_driver_extensions
    from rasterio.env import GDALVersion

    known = set(raster_driver_extensions().values())
    wanted = {"GTiff": "GeoTIFF", "JP2OpenJPEG": "JPEG 2000", "VRT": "virtual mosaics"}
    missing = [text for driver, text in wanted.items() if driver not in known]
    text = f"{GDALVersion.runtime()} (rasterio {rasterio.__version__})"
    if missing:
        fix = "pip install --force-reinstall --no-deps rasterio"
        yield MachineCheck("gdal", "warn", f"{text}, cannot read {', '.join(missing)}", fix)
    else:
        yield MachineCheck("gdal", "ok", f"{text}, reads {', '.join(wanted.values())}")
    for variable in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA"):
        if variable in os.environ:
            found = f"is set to {os.environ[variable]}: another GDAL's files may confuse this one"
            yield MachineCheck(
                variable, "warn", found, f"unset {variable} if coordinates look wrong"
            )


def _hub() -> Iterator[MachineCheck]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    mode = ", offline" if constants.HF_HUB_OFFLINE else ""
    yield MachineCheck(
        "weights", "ok", f"{counted(models, 'pretrained model')} cached in {cache}{mode}"
    )


def _disk(runs: Path) -> Iterator[MachineCheck]:
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        yield MachineCheck(
            "runs", "fail", f"{folder} cannot be written", "another folder: --output DIR"
        )
    elif free < NEEDED_GB:
        fix = "free some space, or another folder: --output DIR"
        yield MachineCheck("runs", "warn", f"only {free:.1f} GB free at {folder}", fix)
    else:
        yield MachineCheck("runs", "ok", f"{free:.0f} GB free at {folder}")


def _data(root: Path | None) -> Iterator[MachineCheck]:
    count = len(presets.names("datasets"))
    if root is None:
        text = f"{count} dataset presets, but no folder to look for them"
        yield MachineCheck("data", "warn", text, "export RSSEG_DATA=/where/datasets/lie")
    elif root.is_dir():
        yield MachineCheck("data", "ok", f"{count} dataset presets, looked for in {root}")
    else:
        yield MachineCheck(
            "data", "fail", f"{root} is not a folder", "check RSSEG_DATA or --data-root"
        )
