"""Builds models from settings, and loads them from files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsseg_cli import __version__, distributed
from rsseg_cli.classes import Class
from rsseg_cli.config import RunConfig, family, parse
from rsseg_cli.contract import Backbone, Bands, Head, Method, fingerprint
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find
from rsseg_cli.number_format import counted
from rsseg_cli.presets import Document
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training.checkpoint import load_model, model_classes
from rsseg_cli.training.run_folder import RunFolder

RUNS = Path("runs")
"""Default folder of the runs."""


def build(config: RunConfig, bands: Bands, classes: int) -> Segmenter:
    """Build a model on the default device, initialised with the seed of the settings."""
    torch.manual_seed(config.training.seed)
    name = str(getattr(config.backbone, "name", ""))
    new_backbone: Callable[..., Backbone] = find("backbones", family(name), Backbone)
    method_class = find("methods", config.method.name, Method)
    new_head: Callable[..., Head[Any]] = find("heads", config.head.name, Head)
    backbone = new_backbone(config.backbone, bands)
    queries = config.head.config.queries_of_method
    method = method_class.build(config.method.config, backbone, queries)
    maps = method.num_feature_maps(backbone)
    # Seeded again: for one seed, heads are initialised the same with all methods.
    torch.manual_seed(config.training.seed)
    head = new_head(config.head.config, dim=backbone.dim, maps=maps, classes=classes)
    return Segmenter(backbone, method, head, bands)


def metadata(
    config: RunConfig, model: Segmenter, classes: Sequence[Class], sources: Json
) -> dict[str, Json]:
    """Return the metadata of a model file: its settings, classes, bands and origin."""
    return {
        "rsseg": __version__,
        "torch": str(torch.__version__),
        "config": config.to_json(),
        "classes": [cls.to_json() for cls in classes],
        "bands": model.bands.model_dump(mode="json"),
        "fingerprint": fingerprint(model.backbone),
        "backbone": dict(model.backbone.origin),
        "sources": sources,
    }


@dataclass
class LoadedModel:
    """An opened model file.

    Attributes:
        path: The file.
        model: In eval mode, on the CPU.
        about: The file's metadata.
    """

    path: Path
    model: Segmenter
    config: RunConfig
    classes: list[Class]
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Path of the run folder, for messages."""
        return str(self.path.parent)

    def describe(self) -> str:
        """Return a line about the model: name, score, bands, pixel size."""
        bands, miou = self.model.bands, (self.about.get("score") or {}).get("miou")
        score = "" if miou is None else f" (mIoU {100 * miou:.1f} on val)"
        gsd = "" if bands.gsd_m is None else f", trained at {bands.gsd_m:g} m"
        return f"{self.name}{score}, bands {' '.join(bands.names)}{gsd}"


def open_model(path: Path | None, *, weights: Path | None = None) -> LoadedModel:
    """Load a model file, a run folder, or the newest finished run below ./runs.

    Args:
        path: The file or folder; None for the newest run.
        weights: Weights file of the backbone, if it has moved since the fit.

    Raises:
        RssegError: There is no model, it is damaged or of a newer version, or the backbone's
            weights differ from those of the fit.
    """
    file = model_file(path)
    tensors, about = load_model(file)
    if weights is not None:
        about["config"]["backbone"]["weights"] = str(weights)
    config = parse(Document(file, about["config"]))
    classes = model_classes(about, file)
    model = build(config, Bands.model_validate(about["bands"]), len(classes))
    current = fingerprint(model.backbone)
    if model.backbone.weights_are_public and current != about["fingerprint"]:
        raise RssegError(
            "the backbone's weights differ from those that this model was fitted on",
            where=f"{file} (fingerprint {about['fingerprint'][:12]}, now {current[:12]})",
            fix="the weights file of the fit: --weights FILE",
        )
    model.load_adapter_state(tensors, where=file)
    model.eval()
    return LoadedModel(file, model, config, classes, about)


def model_file(path: Path | None) -> Path:
    """Return the model file of a run folder, the file itself, or that of the newest finished run.

    Raises:
        RssegError: No path is given, and no run is finished.
    """
    if path is not None:
        return RunFolder(path).model if path.is_dir() else path
    runs = [run for run in map(RunFolder, sorted(RUNS.glob("*/"))) if run.finished]
    if not runs:
        raise RssegError(
            "there is no finished run", where=str(RUNS.absolute()), fix="rsseg fit, or --model RUN"
        )
    return max((run.model for run in runs), key=lambda file: file.stat().st_mtime)


def pick_device(name: str) -> torch.device:
    """Return the device to compute on; each of several processes gets its own GPU.

    Raises:
        RssegError: The device is unknown or not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RssegError(
            f"{name} is not a device", where="--device", fix="auto, cpu, cuda or cuda:0"
        )
    if name == "cuda" and distributed.active():
        name = f"cuda:{distributed.local_rank()}"
    device = torch.device(name)
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise RssegError(
            f"{name} is not available ({counted(torch.cuda.device_count(), 'GPU')} found)",
            where="--device",
            fix="--device cpu; `rsseg doctor` shows the reason",
        )
    return device
