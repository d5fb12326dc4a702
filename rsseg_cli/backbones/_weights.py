"""Reads pretrained weights, checks them and hashes them."""

from __future__ import annotations

import dataclasses
import hashlib
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

from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.number_format import listed

SHOWN = 4
"""Tensors that an error names of each kind."""


@dataclass(frozen=True)
class WeightsSource:
    """Where weights that timm does not list are published, and on which terms."""

    page: str
    file: str
    license: str
    """An SPDX name; empty where nobody says."""
    repository: str = ""
    """On the hub; empty where the file is elsewhere."""
    revision: str = "main"


def read_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a .pth that holds tensors only.

    Raises:
        UnreadableError: The file is missing, no such file, or would run code when opened.
    """
    where = str(path)
    if not path.is_file():
        raise UnreadableError(
            "the weights file is not there", where=where, fix="check --weights FILE"
        )
    try:
        tensors = load_state_dict(where, weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableError(
            f"the weights cannot be opened: {reason}",
            where=where,
            fix="a .safetensors file, or a .pth that holds tensors and nothing else",
        ) from error
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UnreadableError(
            "the file holds other things than named tensors",
            where=where,
            fix="a file with the state dict alone, or under `state_dict` or `model`",
        )
    return tensors


def read_hub(model: str) -> dict[str, Tensor]:
    """Read the published tensors of a timm `name.tag` from the hub's cache or the hub.

    Raises:
        RssegError: No network, or the licence has not been accepted.
    """
    published = published_as(model)
    repository, filename = str(published["hf_hub_id"]), published.get("hf_hub_filename")
    try:
        tensors = load_state_dict_from_hf(repository, *([filename] if filename else []))
    except (OSError, RuntimeError, ValueError) as error:
        raise unavailable(repository, published.get("license"), error) from error
    return dict(tensors)


def fetch(home: WeightsSource) -> Path:
    """Return the path of a published file in the hub's cache; download it first if need be.

    Raises:
        RssegError: No network.
    """
    try:
        return Path(hf_hub_download(home.repository, home.file, revision=home.revision))
    except (OSError, RuntimeError, ValueError) as error:
        name = f"{home.repository}/{home.file}"
        raise unavailable(home.repository, home.license, error, name=name) from error


def published_as(model: str) -> dict[str, Any]:
    """Return timm's entry of a `name.tag`: repository, licence, input size, mean and std."""
    config = timm.get_pretrained_cfg(model)
    if config is None:
        raise LookupError(f"timm {timm.__version__} does not know {model}")
    return dataclasses.asdict(config)


def unavailable(
    repository: str, license_name: str | None, error: Exception, *, name: str = ""
) -> RssegError:
    """Build the error for published weights that cannot be downloaded."""
    page = f"https://huggingface.co/{repository}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RssegError(
        f"the pretrained weights {name or repository} are not cached and could not be downloaded: "
        f"{reason}",
        where=f"{page} (licence: {license_name or 'see there'})",
        fix="connect and, if it is asked for, accept the licence on that page and `hf auth login`;"
        " or fetch the file by other means and give it with --weights FILE;"
        " or go without on purpose: --no-pretrained",
    )


def contradiction() -> RssegError:
    """Build the error for a weights file beside `pretrained: false`."""
    return RssegError(
        "a weights file and no pretrained weights are asked for at once",
        where="backbone.weights and backbone.pretrained",
        fix="one of the two",
    )


def load_strictly(
    model: nn.Module, tensors: Mapping[str, Tensor], *, name: str, where: str
) -> None:
    """Copy `tensors` into `model` if names and shapes are the same on both sides.

    Raises:
        RssegError: They are not; some of the missing, unknown and misshapen ones are named.
    """
    expected = model.state_dict()
    misshapen = [
        f"{key} {_shape(tensors[key])} instead of {_shape(tensor)}"
        for key, tensor in expected.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unknown": [key for key in tensors if key not in expected],
        "of another shape": misshapen,
    }
    found = [
        f"{len(keys)} {kind} ({listed(keys, SHOWN)})" for kind, keys in problems.items() if keys
    ]
    if found:
        raise RssegError(
            f"these weights are not for {name}: tensors {'; '.join(found)}",
            where=where,
            fix=f"the file that was published for {name}, or the --backbone that this file is for",
        )
    model.load_state_dict(dict(tensors))


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the construction of networks; on the meta device nothing is drawn.

    They are drawn on the CPU wherever the network will run, and the caller's stream stays as it is.
    """
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        yield


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_random(model: nn.Module) -> str:
    """Hash what is the same on every machine in a seeded random model: names, shapes and signs.

    The last bits of random numbers differ between processors, their signs do not.
    """
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        return "meta"
    return digest({name: tensor < 0 for name, tensor in tensors.items()})
