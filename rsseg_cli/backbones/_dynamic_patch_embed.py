"""Patch kernels that a weight generator computes from wavelengths (DOFA and its successors).

A transformer turns one code per band into one kernel per band. The bands of a model do not change,
so that it runs once, when the backbone is made: what remains is a plain vision transformer.
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
"""Width of the transformer that makes kernels, and of a band's code."""
SHRINK = 0.01
"""Kernels and bias are scaled by this."""
MARGIN = 1
"""The convolution pads its image by one pixel, as in training."""

PLAIN: dict[str, Any] = {"final_norm": False, "global_pool": ""}
"""Changes to timm's class: what is behind the last block is not needed."""


class WeightGenerator(nn.Module):
    """Turns the codes of bands into patch kernels; its parts are named as in published files."""

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
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Turn codes (C, 128) into weight (D, C, p, p) and bias (D,)."""
        made = self.weight_generator
        hidden = F.relu(self.fclayer["w1"](codes))
        codes = codes + F.relu(self.fclayer["w2"](hidden))
        tokens = (made.get_parameter("weight_tokens"), codes, made.get_parameter("bias_token"))
        answered = made["transformer_encoder"](torch.cat(tokens))
        bands = answered[len(tokens[0]) : -1] + codes
        weight = made["fc_weight"](bands).view(-1, self.patch, self.patch, self.dim)
        return weight.permute(3, 0, 1, 2) * SHRINK, made["fc_bias"](answered[-1]) * SHRINK


class DynamicPatchEmbed(Vit):
    """timm's blocks behind kernels made for the bands; `adapt` has nothing to do here.

    A family says with `coding` what its network is told of the bands.
    """

    title: ClassVar[str]
    """What errors call the family."""
    stem: ClassVar[str]
    """What the names of the kernel maker's tensors begin with."""
    left_out: ClassVar[tuple[str, ...]]
    """Beginnings of names in the file that the model has no use for."""

    def __init__(self, config: TimmBackbone.Config, bands: Bands) -> None:
        self.codes = self.coding(bands)
        if config.stats == "native":
            raise RssegError(
                f"{self.title} was trained with the statistics of each sensor: "
                "there are no native ones",
                where="backbone.stats",
                fix="backbone.stats data (or auto)",
            )
        if config.patch is not None and config.patch <= 2 * MARGIN:
            raise RssegError(
                f"{self.title}'s patches have at least {2 * MARGIN + 1} pixels",
                where="backbone.patch",
                fix="backbone.patch 16",
            )
        super().__init__(config.model_copy(update={"stats": "data"}), bands)
        del self.maker, self.codes

    def coding(self, bands: Bands) -> Tensor:
        """Encode wavelengths or other properties of the bands: (C, 128).

        Raises:
            RssegError: Something that is needed is not known.
        """
        raise NotImplementedError

    def _make(self, size: ModelSize, seed: int, *, channels: int) -> nn.Module:
        model: Any = super()._make(size, seed, channels=len(self.bands))
        model.patch_embed.proj.padding = (MARGIN, MARGIN)
        with _weights.seeded(seed):
            self.maker = WeightGenerator(model.embed_dim, size.patch)
        model.patch_embed.proj.load_state_dict(self._kernels())
        return model  # type: ignore[no-any-return]  # timm is untyped

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generate the kernels with the file's generator, and drop what follows the blocks."""
        load_part(self.maker, below(self.stem, tensors))
        trunk = {
            name: t
            for name, t in tensors.items()
            if not name.startswith((self.stem, *self.left_out))
        }
        made = {f"patch_embed.proj.{name}": tensor for name, tensor in self._kernels().items()}
        return super().translate(trunk | made)

    def widen(self, mix: Tensor) -> None:
        """Do nothing: the kernels were generated for these bands."""

    @torch.no_grad()
    def _kernels(self) -> dict[str, Tensor]:
        """Generate weight (D, C, p, p) and bias (D,) of the patch embedding."""
        weight, bias = self.maker.eval()(self.codes.to(self.maker.device))
        return {"weight": _resize.resize_kernel(weight, self.patch, self.resize), "bias": bias}


def below(stem: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `stem`, without it."""
    return {name.removeprefix(stem): t for name, t in tensors.items() if name.startswith(stem)}


def load_part(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load a part of a file.

    Raises:
        ValueError: Its tensors are not the module's.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:  # torch writes a line per tensor
        raise ValueError(" ".join(str(error).split())) from error


def require(
    title: str,
    what: Literal["wavelength", "bandwidth"],
    bands: Bands,
    values: tuple[float | None, ...],
) -> list[float]:
    """Return a property of every band.

    Raises:
        RssegError: It is not known of some.
    """
    unknown = [name for name, value in zip(bands.names, values, strict=True) if value is None]
    if unknown:
        raise RssegError(
            f"{title} needs the {what} of every band, and {', '.join(unknown)} have none",
            where=f"bands of the dataset ({what}_nm)",
            fix=f"{what}_nm in the dataset's YAML, or another --backbone",
        )
    return [value for value in values if value is not None]
