"""Builds a model from settings, and opens one from its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsseg_cli import __version__, distributed
from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.config import RunConfig, family, parse
from rsseg_cli.contract import Backbone, Head, Method, fingerprint
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find
from rsseg_cli.plain import Json
from rsseg_cli.presets import Document
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.checkpoint import load_model
from rsseg_cli.training.folder import RunFolder
from rsseg_cli.words import counted


def build(config: RunConfig, bands: Bands, classes: int) -> Segmenter:
    """Build the model of a configuration, seeded by it, on the default device."""
    torch.manual_seed(config.training.seed)
    name = str(getattr(config.backbone, "name", ""))
    new_backbone: Callable[..., Backbone] = find("backbones", family(name), Backbone)
    kind = find("methods", config.method.name, Method)
    new_head: Callable[..., Head[Any]] = find("heads", config.head.name, Head)
    backbone = new_backbone(config.backbone, bands)
    method = kind.build(config.method.config, backbone, config.head.config.queries_of_method)
    maps = method.num_feature_maps(backbone)
    # Again, so that methods of one seed start with the same head, whatever they have drawn.
    torch.manual_seed(config.training.seed)
    head = new_head(config.head.config, dim=backbone.dim, maps=maps, classes=classes)
    return Segmenter(backbone, method, head, bands, weights_are_public=backbone.weights_are_public)


def metadata(
    config: RunConfig, model: Segmenter, classes: Sequence[Class], sources: Json
) -> dict[str, Json]:
    """Return the metadata of a model file: settings, classes, bands, origin of the weights."""
    return {
        "rsseg": __version__,
        "torch": str(torch.__version__),
        "config": config.document(),
        "classes": [{"id": c.id, "name": c.name, "color": list(c.color)} for c in classes],
        "bands": model.bands.model_dump(mode="json"),
        "fingerprint": fingerprint(model.backbone),
        "backbone": dict(model.backbone.origin),
        "sources": sources,
    }


@dataclass
class Fitted:
    """A model file, opened.

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
        """Run folder of the model, as the terminal shows it."""
        return str(self.path.parent)

    def describe(self) -> str:
        """Return a one-line description."""
        bands = self.model.bands
        score = self.about.get("score") or {}
        miou = score.get("miou")
        shown = "" if miou is None else f" (mIoU {100 * miou:.1f} on val)"
        gsd = "" if bands.gsd_m is None else f", trained at {bands.gsd_m:g} m"
        return f"{self.name}{shown}, bands {' '.join(bands.names)}{gsd}"


def open_model(path: Path | None, *, weights: Path | None = None) -> Fitted:
    """Open a model file, a run folder, or the newest finished run below ./runs.

    Args:
        path: The file or folder; None for the newest run.
        weights: Where the backbone's weights file is now, if it has moved since the fit.

    Raises:
        RssegError: There is none, it is damaged or newer, or its backbone is not the one that it
            was fitted on.
    """
    file = newest() if path is None else path / "model.safetensors" if path.is_dir() else path
    tensors, about = load_model(file)
    if weights is not None:
        about["config"]["backbone"]["weights"] = str(weights)
    config = parse(Document(file, about["config"]))
    classes = [Class(c["id"], c["name"], tuple(c["color"])) for c in about["classes"]]
    model = build(config, Bands.model_validate(about["bands"]), len(classes))
    found = fingerprint(model.backbone)
    if model.weights_are_public and found != about["fingerprint"]:
        raise RssegError(
            "the backbone's weights are not those that this model was fitted on",
            where=f"{file} (fingerprint {about['fingerprint'][:12]}, found {found[:12]})",
            fix="the weights file of the fit: --weights FILE",
        )
    model.unpack(tensors)
    model.eval()
    return Fitted(file, model, config, classes, about)


def newest(runs: Path = Path("runs")) -> Path:
    """Return the model file of the newest finished run.

    Raises:
        RssegError: There is none.
    """
    finished = [
        folder.model for folder in map(RunFolder, sorted(runs.glob("*/"))) if folder.finished
    ]
    if not finished:
        raise RssegError(
            "there is no finished run", where=str(runs.absolute()), fix="rsseg fit, or --model RUN"
        )
    return max(finished, key=lambda file: file.stat().st_mtime)


def pick_device(wanted: str) -> torch.device:
    """Return the device; each of several processes gets its own GPU.

    Raises:
        RssegError: The device is unknown, or not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise RssegError(
            f"{wanted} is not a device", where="--device", fix="auto, cpu, cuda or cuda:0"
        )
    if wanted == "cuda" and distributed.active():
        wanted = f"cuda:{distributed.local_rank()}"
    device = torch.device(wanted)
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise RssegError(
            f"{wanted} is not there ({counted(torch.cuda.device_count(), 'GPU')} seen)",
            where="--device",
            fix="--device cpu, or `rsseg doctor` to see why",
        )
    return device
