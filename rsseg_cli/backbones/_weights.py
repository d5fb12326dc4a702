"""Download, reading, checking and hashing of pretrained weights."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models import load_state_dict, load_state_dict_from_hf
from torch import Tensor, nn

from rsseg_cli.contract import Backbone
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.number_format import listed

SHOWN = 4
"""Number of tensors of each kind that an error lists."""


@dataclass(frozen=True)
class WeightsSource:
    """A published file that timm does not list, and its licence."""

    file: str
    license: str
    """An SPDX name; empty if unknown."""
    repository: str = ""
    """Repository on the Hugging Face Hub; empty if the file is elsewhere."""
    revision: str = "main"
    url: str = ""
    """Address of a file outside the hub."""

    @property
    def page(self) -> str:
        """Page with the licence."""
        return self.url or f"https://huggingface.co/{self.repository}"


class PretrainedConfig(Backbone.Config):
    """Settings of backbones with published weights."""

    name: str
    """`<family>_<size>`."""
    weights: Path | None = None
    """A file with the weights; None downloads the published ones."""
    pretrained: bool = True
    """False starts from random numbers."""
    seed: int = 0
    """Seed of those random numbers, from which model files restore them."""
    out_indices: tuple[int, ...] | None = None
    """Blocks whose output becomes a feature map; None selects four at equal steps."""

    def check_weights(self) -> None:
        """Raise an `RssegError` for a weights file together with `pretrained: false`."""
        if self.weights is not None and not self.pretrained:
            raise RssegError(
                "a weights file and no pretrained weights are requested at once",
                where="backbone.weights and backbone.pretrained",
                fix="one of the two",
            )


def read_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a .pth with tensors only.

    Raises:
        UnreadableError: The file is missing, has another format, or would run code when opened.
    """
    where = str(path)
    if not path.is_file():
        raise UnreadableError(
            "the weights file is not there", where=where, fix="check --weights FILE"
        )
    try:
        tensors = load_state_dict(where, weights_only=True)
    except Exception as error:  # a damaged pickle may raise any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableError(
            f"the weights cannot be opened: {reason}",
            where=where,
            fix="a .safetensors file, or a .pth with tensors and nothing else",
        ) from error
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UnreadableError(
            "the file does not contain named tensors only",
            where=where,
            fix="a file with the state dict alone, or under `state_dict` or `model`",
        )
    return tensors


def read_hub(model: str) -> dict[str, Tensor]:
    """Read the published tensors of a timm `name.tag` from the cache or the hub.

    Raises:
        RssegError: The hub cannot be reached, or the licence has not been accepted.
    """
    config = timm_config(model)
    repository, filename = str(config["hf_hub_id"]), config.get("hf_hub_filename")
    try:
        tensors = load_state_dict_from_hf(repository, *([filename] if filename else []))
    except (OSError, RuntimeError, ValueError) as error:
        source = WeightsSource("", config.get("license") or "", repository)
        raise _unavailable(source, error) from error
    return dict(tensors)


def fetch(source: WeightsSource) -> Path:
    """Return the path of a published file in the cache, after a download if it is missing.

    Raises:
        RssegError: The file cannot be downloaded.
    """
    try:
        if not source.url:
            return Path(hf_hub_download(source.repository, source.file, revision=source.revision))
        path = Path(torch.hub.get_dir()) / "checkpoints" / source.file
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source.url, str(path), progress=sys.stderr.isatty())
    except (OSError, RuntimeError, ValueError) as error:
        raise _unavailable(source, error) from error
    return path


def timm_config(model: str) -> dict[str, Any]:
    """Return timm's entry of a `name.tag`: repository, licence, input size, mean and std."""
    config = timm.get_pretrained_cfg(model)
    if config is None:
        raise LookupError(f"timm {timm.__version__} does not list {model}")
    return dataclasses.asdict(config)


def _unavailable(source: WeightsSource, error: Exception) -> RssegError:
    """Build the error for published weights that cannot be downloaded."""
    name = "/".join(filter(None, (source.repository, source.file)))
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RssegError(
        f"the pretrained weights {name} are not cached and could not be downloaded: {reason}",
        where=f"{source.page} (licence: {source.license or 'see there'})",
        fix="connect and, if it is required, accept the licence on that page and `hf auth login`;"
        " or download the file by other means and use --weights FILE;"
        " or start from random numbers: --no-pretrained",
    )


def load_strictly(
    model: nn.Module, tensors: Mapping[str, Tensor], *, name: str, where: str
) -> None:
    """Copy `tensors` into `model`.

    Raises:
        RssegError: Names or shapes differ; the first missing, unknown and misshapen are listed.
    """
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unknown": [key for key in tensors if key not in expected],
        "of another shape": [
            f"{key} {_shape(tensors[key])} instead of {_shape(tensor)}"
            for key, tensor in expected.items()
            if key in tensors and tensors[key].shape != tensor.shape
        ],
    }
    lines = [
        f"{len(keys)} {kind} ({listed(keys, SHOWN)})" for kind, keys in problems.items() if keys
    ]
    if lines:
        raise RssegError(
            f"these weights are not for {name}: tensors {'; '.join(lines)}",
            where=where,
            fix=f"the file that was published for {name}, or the --backbone that this file is for",
        )
    model.load_state_dict(dict(tensors))


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the construction of networks inside this block; the caller's generator is unchanged.

    Random numbers are drawn on the CPU, for any later device. On the meta device none are drawn.
    """
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        yield


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names, types, shapes and bytes of tensors, ordered by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_random(model: nn.Module) -> str:
    """Compute a hash of a seeded random model that is equal on all machines.

    It covers names, shapes and signs: the last bits of random numbers differ between processors.
    """
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        return "meta"
    return digest({name: tensor < 0 for name, tensor in tensors.items()})
