"""DOFA (Xiong et al. 2024, arXiv 2403.15356): patch kernels made from the bands' wavelengths.

A small transformer turns the centre wavelengths of the bands into one kernel per band. The bands
of a model do not change, so that it runs once, when the backbone is made: what remains is a plain
vision transformer. Files are those of torchgeo 0.8 and later; older ones order kernels otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import hf_hub_download
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.backbones import _weights
from rsseg_cli.backbones._timm import Size, TimmBackbone
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

REPOSITORY = "torchgeo/dofa"
REVISION = "b8db318b64a90b9e085ec04ba8851233c5893666"
FILES = {
    "base": "dofa_base_patch16_224-a0275954.pth",
    "large": "dofa_large_patch16_224-0ff904d3.pth",
}
HEAD = ("head.", "fc_norm.", "norm.")
"""Tensors behind the last block, which some files hold."""

WIDTH = 128
"""Width of the transformer that makes kernels."""
SHRINK = 0.01
"""Kernels and bias are scaled by this."""
MARGIN = 1
"""The convolution pads its image by one pixel, as in training."""

PLAIN = {"final_norm": False, "global_pool": ""}


class Dofa(Vit):
    """timm's blocks behind kernels made for the bands; `adapt` has nothing to do here."""

    sizes: ClassVar[Mapping[str, Size]] = {
        "base": Size("vit_base_patch16_224.mae", patch=16, changes=PLAIN),
        "large": Size("vit_large_patch16_224.mae", patch=16, changes=PLAIN),
    }

    def __init__(self, config: TimmBackbone.Config, bands: Bands) -> None:
        self.waves = _wavelengths(bands)
        if config.stats == "native":
            raise RssegError(
                "DOFA was trained with the statistics of each sensor: there are no native ones",
                where="backbone.stats",
                fix="backbone.stats data (or auto)",
            )
        if config.patch is not None and config.patch <= 2 * MARGIN:
            raise RssegError(
                f"DOFA's patches have at least {2 * MARGIN + 1} pixels",
                where="backbone.patch",
                fix="backbone.patch 16",
            )
        super().__init__(config.model_copy(update={"stats": "data"}), bands)
        del self.maker, self.waves

    def _make(self, size: Size, seed: int, *, channels: int) -> nn.Module:
        model: Any = super()._make(size, seed, channels=len(self.bands))
        model.patch_embed.proj.padding = (MARGIN, MARGIN)
        with _weights.seeded(seed):
            self.maker = KernelMaker(model.embed_dim, size.patch)
        model.patch_embed.proj.load_state_dict(self._kernels())
        return model  # type: ignore[no-any-return]  # timm is untyped

    def _load(self, config: TimmBackbone.Config, size: Size) -> tuple[str, str]:
        path = config.weights or _fetch(config.name.partition("_")[2])
        return super()._load(config.model_copy(update={"weights": path}), size)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the kernels from the file's maker, and leave out what is behind the blocks."""
        stem = "patch_embed."
        own = {n.removeprefix(stem): t for n, t in tensors.items() if n.startswith(stem)}
        try:
            self.maker.load_state_dict(own)
        except RuntimeError as error:  # torch writes a line per tensor
            raise ValueError(" ".join(str(error).split())) from error
        trunk = {name: t for name, t in tensors.items() if not name.startswith((stem, *HEAD))}
        made = {f"{stem}proj.{name}": tensor for name, tensor in self._kernels().items()}
        return super().translate(trunk | made)

    def widen(self, mix: Tensor) -> None:
        """Leave the kernels alone: they were made for these bands."""

    @torch.no_grad()
    def _kernels(self) -> dict[str, Tensor]:
        """Make weight (D, C, p, p) and bias (D,) of the patch embedding."""
        weight, bias = self.maker.eval()(self.waves.to(self.maker.device))
        if weight.shape[-1] != self.patch:
            weight = resample_patch_embed(weight, [self.patch, self.patch])
        return {"weight": weight, "bias": bias}


class KernelMaker(nn.Module):
    """Turns wavelengths into patch kernels; its parts are named as in the published files."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.dim, self.patch = dim, patch
        self.fclayer = nn.ModuleDict({"w1": nn.Linear(WIDTH, WIDTH), "w2": nn.Linear(WIDTH, WIDTH)})
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=2048, dropout=0.0, activation="gelu"
        )
        self.weight_generator = nn.ModuleDict(
            {
                "transformer_encoder": nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
                "fc_weight": nn.Linear(WIDTH, patch * patch * dim),
                "fc_bias": nn.Linear(WIDTH, dim),
            }
        )
        for name, count in (("weight_tokens", 128), ("bias_token", 1)):
            token = nn.Parameter(torch.randn(count, WIDTH) * 0.02)
            self.weight_generator.register_parameter(name, token)

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(self.parameters()).device

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Turn wavelengths (C,) in nanometres into weight (D, C, p, p) and bias (D,)."""
        made = self.weight_generator
        encoded = encode(waves)
        hidden = F.relu(self.fclayer["w1"](encoded))
        encoded = encoded + F.relu(self.fclayer["w2"](hidden))
        tokens = (made.get_parameter("weight_tokens"), encoded, made.get_parameter("bias_token"))
        answered = made["transformer_encoder"](torch.cat(tokens))
        bands = answered[len(tokens[0]) : -1] + encoded
        weight = made["fc_weight"](bands).view(-1, self.patch, self.patch, self.dim)
        return weight.permute(3, 0, 1, 2) * SHRINK, made["fc_bias"](answered[-1]) * SHRINK


def encode(waves: Tensor) -> Tensor:
    """Encode numbers (C,) by sines, then cosines, of 64 frequencies: (C, 128)."""
    half = WIDTH // 2
    powers = torch.arange(half, dtype=torch.float32, device=waves.device) / half
    angles = waves[:, None] * (1.0 / 10_000**powers)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _wavelengths(bands: Bands) -> Tensor:
    """Collect the centres in nanometres, by way of micrometres as the authors give them.

    Sines of hundreds of radians feel the last bit of a float32.

    Raises:
        RssegError: A band has none.
    """
    unknown = [
        name
        for name, centre in zip(bands.names, bands.wavelengths_nm, strict=True)
        if centre is None
    ]
    if unknown:
        raise RssegError(
            f"DOFA needs the wavelength of every band, and {', '.join(unknown)} have none",
            where="bands of the dataset (wavelengths_nm)",
            fix="wavelengths_nm in the dataset's YAML, or another --backbone",
        )
    micrometres = [centre / 1000 for centre in bands.wavelengths_nm if centre is not None]
    return torch.tensor(micrometres, dtype=torch.float32) * 1000


def _fetch(size: str) -> Path:
    """Find the published file in the hub's cache, or download it there."""
    try:
        return Path(hf_hub_download(REPOSITORY, FILES[size], revision=REVISION))
    except (OSError, RuntimeError, ValueError) as error:
        raise _weights.unavailable(f"{REPOSITORY}", None, error) from error
