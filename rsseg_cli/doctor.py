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
"""Free disk space below which a warning is shown."""


@dataclass(frozen=True)
class MachineCheck:
    """Result of one check of the machine."""

    subject: str
    state: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """Return all attributes."""
        return asdict(self)


def check_machine(*, data_root: Path | None, runs: Path) -> list[MachineCheck]:
    """Run all checks, without changing anything."""
    return [
        MachineCheck("rsseg", "ok", __version__),
        *_check_torch(),
        *_check_packages(),
        *_check_gdal(),
        _check_weights(),
        _check_disk(runs),
        _check_data(data_root),
    ]


def _check_torch() -> Iterator[MachineCheck]:
    import torch

    yield MachineCheck("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            text = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, trains in {precision}"
            yield MachineCheck(f"cuda:{index}", "ok", text)
    elif torch.version.cuda:
        text = f"no GPU found (torch was built for CUDA {torch.version.cuda}); running on the CPU"
        fix = "nvidia-smi shows whether the driver is installed and new enough"
        yield MachineCheck("cuda", "warn", text, fix)
    else:
        text = "torch was built without CUDA; running on the CPU"
        yield MachineCheck("cuda", "warn", text, "pip install --force-reinstall torch torchvision")


def _check_packages() -> Iterator[MachineCheck]:
    for name in ("timm", "rasterio", "geopandas", "shapely", "pydantic"):
        try:
            yield MachineCheck(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield MachineCheck(name, "fail", "is not installed", f"pip install {name}")


def _check_gdal() -> Iterator[MachineCheck]:
    import rasterio
    from rasterio.drivers import raster_driver_extensions
    from rasterio.env import GDALVersion

    available = set(raster_driver_extensions().values())
    formats = {"GTiff": "GeoTIFF", "JP2OpenJPEG": "JPEG 2000", "VRT": "virtual mosaics"}
    missing = [text for driver, text in formats.items() if driver not in available]
    text = f"{GDALVersion.runtime()} (rasterio {rasterio.__version__})"
    if missing:
        fix = "pip install --force-reinstall --no-deps rasterio"
        yield MachineCheck("gdal", "warn", f"{text}, cannot read {', '.join(missing)}", fix)
    else:
        yield MachineCheck("gdal", "ok", f"{text}, reads {', '.join(formats.values())}")
    for variable in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA"):
        if variable in os.environ:
            text = f"is set to {os.environ[variable]}: files of another GDAL may be used"
            fix = f"unset {variable} if coordinates look wrong"
            yield MachineCheck(variable, "warn", text, fix)


def _check_weights() -> MachineCheck:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    mode = ", offline" if constants.HF_HUB_OFFLINE else ""
    text = f"{counted(models, 'pretrained model')} cached in {cache}{mode}"
    return MachineCheck("weights", "ok", text)


def _check_disk(runs: Path) -> MachineCheck:
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        text, fix = f"no permission to write to {folder}", "another folder: --output DIR"
        return MachineCheck("runs", "fail", text, fix)
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_GB:
        fix = "free some space, or another folder: --output DIR"
        return MachineCheck("runs", "warn", f"only {free:.1f} GB free at {folder}", fix)
    return MachineCheck("runs", "ok", f"{free:.0f} GB free at {folder}")


def _check_data(root: Path | None) -> MachineCheck:
    datasets = counted(len(presets.names("datasets")), "dataset preset")
    if root is None:
        text, fix = f"{datasets}, but no data folder is set", "export RSSEG_DATA=/path/to/datasets"
        return MachineCheck("data", "warn", text, fix)
    if not root.is_dir():
        fix = "check RSSEG_DATA or --data-root"
        return MachineCheck("data", "fail", f"{root} is not a folder", fix)
    return MachineCheck("data", "ok", f"{datasets}; the data folder is {root}")
