"""Finds and reads the files that Galileo is published as."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from rsseg_cli.backbones import _galileo_bands, _weights
from rsseg_cli.errors import UnreadableError

REPOSITORY = "nasaharvest/galileo"
LICENCE = "MIT"


@dataclass(frozen=True)
class EncoderShape:
    """The numbers of `config.json` that matter here."""

    dim: int
    depth: int
    heads: int


def locate(weights: Path | None, size: str) -> Path:
    """Return `encoder.pt`: a file, one in a folder, or, without either, that of a size on the hub.

    Raises:
        RssegError: The hub cannot be reached.
    """
    if weights is not None:
        return weights / "encoder.pt" if weights.is_dir() else weights
    try:
        hf_hub_download(REPOSITORY, f"models/{size}/config.json")
        return Path(hf_hub_download(REPOSITORY, f"models/{size}/encoder.pt"))
    except (OSError, RuntimeError, ValueError) as error:
        raise _weights.unavailable(REPOSITORY, LICENCE, error) from error


def read_shape(encoder: Path) -> EncoderShape:
    """Read the network's numbers from the `config.json` beside `encoder.pt`.

    Raises:
        UnreadableError: It is missing or not Galileo's.
    """
    path = encoder.parent / "config.json"
    content = _read_json(path)
    try:
        model = content["model"]["encoder"]
        return EncoderShape(
            dim=model["embedding_size"], depth=model["depth"], heads=model["num_heads"]
        )
    except (KeyError, TypeError) as error:
        raise UnreadableError(
            f"config.json is not Galileo's: {error} is missing",
            where=str(path),
            fix="the config.json that was published with encoder.pt",
        ) from error


def read_statistics(encoder: Path) -> _galileo_bands.ChannelStatistics:
    """Read mean and std of the 13 pretraining channels from the `normalization.json` beside.

    The hub keeps none beside its weights, as all sizes share one: then it is the published one.

    Raises:
        UnreadableError: The file is there and is not Galileo's.
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
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnreadableError(
            f"Galileo's {path.name} cannot be read: {error}",
            where=str(path),
            fix="keep encoder.pt and config.json together in one folder",
        ) from error
