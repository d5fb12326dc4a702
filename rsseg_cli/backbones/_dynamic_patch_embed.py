"""Patch kernels that a weight generator computes from wavelengths (DOFA and its successors).

A transformer computes one kernel per band from one code per band. As the bands of a model do not
change, it runs once when the backbone is built; the result is a plain vision transformer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.backbones import _resize, _weights
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

WIDTH = 128
"""Width of the weight generator and of a band's code."""
SCALE = 0.01
"""Factor of the generated kernels and bias."""
MARGIN = 1
"""Padding of the convolution in pixels, as in the pretraining."""

NO_HEAD: dict[str, Any] = {"final_norm": False, "global_pool": ""}
"""Arguments of timm's constructor that leave out the layers after the last block."""


class WeightGenerator(nn.Module):
    """Computes patch kernels from the codes of bands; parameters are named as in the files."""

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

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute weight (D, C, p, p) and bias (D,) from codes (C, 128)."""
        layers = self.weight_generator
        hidden = F.relu(self.fclayer["w1"](codes))
        codes = codes + F.relu(self.fclayer["w2"](hidden))
        weight_tokens, bias_token = map(layers.get_parameter, ("weight_tokens", "bias_token"))
        encoded = layers["transformer_encoder"](torch.cat((weight_tokens, codes, bias_token)))
        bands = encoded[len(weight_tokens) : -1] + codes
        weight = layers["fc_weight"](bands).view(-1, self.patch, self.patch, self.dim)
        return weight.permute(3, 0, 1, 2) * SCALE, layers["fc_bias"](encoded[-1]) * SCALE


class DynamicPatchEmbed(Vit):
    """timm's blocks behind generated kernels; the setting `adapt` has no effect."""

    title: ClassVar[str]
    """Name of the family in errors."""
    generator_prefix: ClassVar[str]
    """Prefix of the weight generator's tensors in the file."""
    unused_prefixes: ClassVar[tuple[str, ...]]
    """Prefixes of tensors in the file that are not used."""
    has_native_statistics: ClassVar[bool] = False

    def __init__(self, config: TimmBackbone.Config, bands: Bands) -> None:
        self.codes = self.encode_bands(bands)
        if config.patch is not None and config.patch <= 2 * MARGIN:
            raise RssegError(
                f"{self.title}'s patches have at least {2 * MARGIN + 1} pixels",
                where="backbone.patch",
                fix="backbone.patch 16",
            )
        super().__init__(config, bands)
        del self.generator, self.codes

    def encode_bands(self, bands: Bands) -> Tensor:
        """Encode wavelengths or other properties of the bands: (C, 128).

        Raises:
            RssegError: A required property is unknown.
        """
        raise NotImplementedError

    def _build(self, size: ModelSize, seed: int, *, channels: int) -> nn.Module:
        model: Any = super()._build(size, seed, channels=len(self.bands))
        model.patch_embed.proj.padding = (MARGIN, MARGIN)
        with _weights.seeded(seed):
            self.generator = WeightGenerator(model.embed_dim, size.patch)
        model.patch_embed.proj.load_state_dict(self._kernels())
        return model  # type: ignore[no-any-return]  # timm is untyped

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generate the kernels with the file's generator, and drop the layers after the blocks."""
        load_submodule(self.generator, without_prefix(self.generator_prefix, tensors))
        dropped = (self.generator_prefix, *self.unused_prefixes)
        kept = {name: t for name, t in tensors.items() if not name.startswith(dropped)}
        kernels = {f"patch_embed.proj.{name}": tensor for name, tensor in self._kernels().items()}
        return super().translate(kept | kernels)

    def adapt_patch_embed(self, mix: Tensor) -> None:
        """Do nothing: the kernels were generated for these bands."""

    @torch.no_grad()
    def _kernels(self) -> dict[str, Tensor]:
        """Generate weight (D, C, p, p) and bias (D,) of the patch embedding."""
        device = next(self.generator.parameters()).device
        weight, bias = self.generator.eval()(self.codes.to(device))
        return {"weight": _resize.resize_kernel(weight, self.patch, self.resize), "bias": bias}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, with the rest of their names."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def load_submodule(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load some tensors of a file into a module.

    Raises:
        ValueError: Names or shapes differ.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:  # torch writes a line per tensor
        raise ValueError(" ".join(str(error).split())) from error


def require_known(
    title: str,
    quantity: Literal["wavelength", "bandwidth"],
    bands: Bands,
    values: tuple[float | None, ...],
) -> list[float]:
    """Return the values of a quantity of all bands.

    Raises:
        RssegError: The value of a band is unknown.
    """
    unknown = [name for name, value in zip(bands.names, values, strict=True) if value is None]
    if unknown:
        raise RssegError(
            f"{title} needs the {quantity} of every band, and {', '.join(unknown)} have none",
            where=f"bands of the dataset ({quantity}_nm)",
            fix=f"{quantity}_nm in the dataset's YAML, or another --backbone",
        )
    return [value for value in values if value is not None]
