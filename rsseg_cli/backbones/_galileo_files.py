"""Reads the published files of Galileo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsseg_cli.backbones import _galileo_bands, _weights
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.errors import UnreadableError

REPOSITORY = "nasaharvest/galileo"
LICENSE = "MIT"


@dataclass(frozen=True)
class EncoderShape:
    """Size of the network."""

    dim: int
    depth: int
    heads: int


def locate(weights: Path | None, size: str) -> Path:
    """Return the path of `encoder.pt`; `weights` is that file, its folder, or None for the hub.

    Raises:
        RssegError: The hub cannot be reached.
    """
    if weights is not None:
        return weights / "encoder.pt" if weights.is_dir() else weights
    names = (f"models/{size}/{name}" for name in ("config.json", "encoder.pt"))
    return [_weights.fetch(WeightsSource(name, LICENSE, REPOSITORY)) for name in names][-1]


def read_shape(encoder: Path) -> EncoderShape:
    """Read the size of the network from `config.json` beside `encoder.pt`.

    Raises:
        UnreadableError: It is missing or not Galileo's.
    """
    path = encoder.parent / "config.json"
    content = _read_json(path)
    try:
        model = content["model"]["encoder"]
        return EncoderShape(model["embedding_size"], model["depth"], model["num_heads"])
    except (KeyError, TypeError) as error:
        raise UnreadableError(
            f"config.json is not Galileo's: {error} is missing",
            where=str(path),
            fix="the config.json that was published with encoder.pt",
        ) from error


def read_statistics(encoder: Path) -> _galileo_bands.ChannelStatistics:
    """Read mean and std of the 13 channels from `normalization.json` beside `encoder.pt`.

    Without that file, as in the cache of the hub, the published statistics are returned.

    Raises:
        UnreadableError: The file is not Galileo's.
    """
    path = encoder.parent / "normalization.json"
    if not path.exists():
        return _galileo_bands.PUBLISHED
    content, expected = _read_json(path), len(_galileo_bands.CHANNELS)
    try:
        mean, std = (tuple(float(x) for x in content["13"][key]) for key in ("mean", "std"))
        if len(mean) != expected or len(std) != expected:
            raise ValueError(f"{len(mean)} means and {len(std)} deviations instead of {expected}")
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableError(
            f"normalization.json is not Galileo's: {error}",
            where=str(path),
            fix="the normalization.json that was published with encoder.pt",
        ) from error
    return mean, std


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(
            f"Galileo's {path.name} cannot be read: {error}",
            where=str(path),
            fix="encoder.pt and config.json in one folder",
        ) from error
