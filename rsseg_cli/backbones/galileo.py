"""Galileo (Tseng et al., 2025): a multispectral transformer with one token per band group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from rsseg_cli.backbones import _galileo_bands, _weights
from rsseg_cli.backbones._band_adaptation import Affine
from rsseg_cli.backbones._galileo_files import (
    LICENSE,
    REPOSITORY,
    EncoderShape,
    locate,
    read_shape,
    read_statistics,
)
from rsseg_cli.backbones._timm import choose_out_indices, even_out_indices, whole
from rsseg_cli.contract import Backbone, Bands, Grid, Projection, Role
from rsseg_cli.errors import RssegError, unknown

KERNEL = 8
"""Side of the published kernels in pixels, and the largest patch."""
UNUSED = (
    "space_embed.", "time_embed.", "static_embed.",
    "sp_channel_embed", "t_channel_embed", "st_channel_embed",
)  # fmt: skip
"""Prefixes of the tensors for elevation, weather and location, which are not used."""


class Galileo(Backbone):
    """Attention among the tokens of all locations and groups; maps are averages over groups.

    A location has one token per band group of the image, in the order of
    `_galileo_bands.CHANNEL_ROWS`. There is no prefix.
    """

    class Config(_weights.PretrainedConfig):
        """Choice of the model, and metadata of the imagery.

        `weights` is `encoder.pt` or its folder, with config.json and normalization.json.
        """

        patch: int | None = None
        """Side of a patch, 1..8 pixels; None selects 8, as in the published kernels."""
        norm_taps: bool = False
        """Apply the final norm, trained for the last block, to every feature map."""
        month: int = Field(default=6, ge=0, le=11)
        """Month of the imagery, 0 January to 11 December."""
        gsd_m: float | None = Field(default=None, gt=0)
        """Ground sampling distance; None uses that of the dataset, or 10 m if unknown."""

    sizes: ClassVar[Mapping[str, EncoderShape]] = {
        "nano": EncoderShape(dim=128, depth=4, heads=8),
        "tiny": EncoderShape(dim=192, depth=12, heads=3),
        "base": EncoderShape(dim=768, depth=12, heads=12),
    }
    supports_queries: ClassVar[bool] = True
    num_prefix_tokens = 0

    def __init__(self, config: Config, bands: Bands) -> None:
        super().__init__()
        size = config.name.partition("_")[2]
        if size not in self.sizes:
            raise unknown("backbone", config.name, [f"galileo_{known}" for known in self.sizes])
        shape = self.sizes[size]
        self.bands = bands
        self.patch = KERNEL if config.patch is None else config.patch
        if not 1 <= self.patch <= KERNEL:
            raise RssegError(
                f"patch {self.patch} is not one of Galileo's", where="backbone.patch", fix="1..8"
            )
        self.assignment = _galileo_bands.assign_groups(bands)
        config.check_weights()
        encoder = locate(config.weights, size) if config.pretrained else None
        statistics = read_statistics(encoder) if encoder else _galileo_bands.PUBLISHED
        self.to_reflectance = Affine(*_galileo_bands.reflectance(bands))
        self.normalise = Affine(*_galileo_bands.normalisation(self.assignment, bands, statistics))
        self.dim, self.depth, self.heads = shape.dim, shape.depth, shape.heads
        self.month, self.norm_taps = config.month, config.norm_taps
        self.gsd_m = config.gsd_m or bands.gsd_m or 10.0
        with _weights.seeded(config.seed):
            self._build()
        if encoder is None:
            source = f"random numbers of seed {config.seed}"
            sha256 = _weights.digest_random(self)
        else:
            source, sha256 = self._load(config.name, shape, encoder)
        self.out_indices = choose_out_indices(
            config.out_indices, even_out_indices(self.depth), self.depth
        )
        self.origin = {
            "name": config.name,
            "source": source,
            "sha256": sha256,
            "patch": self.patch,
            "resize": "pseudo-inverse bicubic",
            "groups": list(self.assignment.names),
            "month": self.month,
            "gsd_m": self.gsd_m,
            "norm_taps": self.norm_taps,
        }
        self.weights_are_public = encoder is not None
        self.eval()

    @classmethod
    def licence(cls, size: str) -> tuple[str, str]:
        """Return the licence of a size's weights and the page that states it."""
        return LICENSE, f"https://huggingface.co/{REPOSITORY}"

    def _build(self) -> None:
        """Build the layers; parameters are named as in the published file."""
        quarter, groups = self.dim // 4, self.assignment.groups
        channels = {name: len(groups.get(name, ("NDVI",))) for name in self.assignment.names}
        self.space_time_embed = nn.ModuleDict(
            {
                name: nn.ModuleDict({"proj": nn.Conv2d(count, self.dim, self.patch, self.patch)})
                for name, count in channels.items()
            }
        )
        self.pos_embed = nn.Parameter(torch.empty(24, quarter))
        self.month_embed = nn.Embedding(12, quarter)
        self.s_t_channel_embed = nn.Parameter(
            torch.empty(len(_galileo_bands.CHANNEL_ROWS), quarter)
        )
        self.blocks = nn.ModuleList(Block(self.dim, self.heads) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.dim)
        for table in (self.pos_embed, self.month_embed.weight, self.s_t_channel_embed):
            nn.init.normal_(table, std=0.02)

    def _load(self, name: str, shape: EncoderShape, encoder: Path) -> tuple[str, str]:
        """Load the published tensors; return their source and their SHA-256."""
        tensors, shape_in_file = _weights.read_file(encoder), read_shape(encoder)
        if shape_in_file != shape:
            raise RssegError(
                f"these weights are not for {name}: {shape_in_file} instead of {shape}",
                where=str(encoder.parent / "config.json"),
                fix=f"the folder of {name}, or another --backbone",
            )
        needed = {key: t for key, t in tensors.items() if not self._is_absent(key)}
        for key, tensor in needed.items():
            if key.startswith("space_time_embed.") and tensor.ndim == 4 and self.patch != KERNEL:
                needed[key] = resample_patch_embed(tensor, [self.patch, self.patch])
        _weights.load_strictly(self, needed, name=name, where=str(encoder))
        return f"{REPOSITORY}: {encoder.name}", _weights.digest(tensors)

    def _is_absent(self, key: str) -> bool:
        """Return whether a tensor of the file is for inputs that this image lacks."""
        absent = [name for name in _galileo_bands.CHANNEL_ROWS if name not in self.assignment.names]
        return key.startswith((*UNUSED, *(f"space_time_embed.{name}." for name in absent)))

    def inputs(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the input (B, channels, H, W) of each group, from a standardised image."""
        reflectance = self.to_reflectance(image)
        normalised = self.normalise(reflectance)
        for name, channels in self.assignment.groups.items():
            yield name, normalised[:, list(channels.values())]
        if self.assignment.ndvi is not None:
            red, nir = (reflectance[:, [index]] for index in self.assignment.ndvi)
            yield "NDVI", _galileo_bands.vegetation_index(red, nir)

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Embed the patches of each group, and add the embeddings of channel, time and location."""
        maps = [
            self.space_time_embed.get_submodule(f"{name}.proj")(x) for name, x in self.inputs(image)
        ]
        content = torch.stack(maps, dim=-1).permute(0, 2, 3, 4, 1)  # (B, h, w, G, D)
        grid = Grid(content.shape[1], content.shape[2], content.shape[3])
        return (content + self.encodings(grid)).flatten(1, 3), grid

    def encodings(self, grid: Grid) -> Tensor:
        """Compute the embedding (h, w, G, D) = [channel | time | month | space], a quarter each."""
        rows = [_galileo_bands.CHANNEL_ROWS.index(name) for name in self.assignment.names]
        channel = self.s_t_channel_embed[rows]
        time = self.pos_embed[0].expand_as(channel)
        month = self.month_embed.weight[self.month].expand_as(channel)
        groups = torch.cat([channel, time, month], dim=-1).expand(grid.h, grid.w, -1, -1)
        space = self._space(grid, channel)[:, :, None].expand(-1, -1, grid.groups, -1)
        return torch.cat([groups, space], dim=-1)

    def _space(self, grid: Grid, like: Tensor) -> Tensor:
        """Compute the sine-cosine embedding (h, w, D/4) of ground distances in units of 10 m.

        The first half encodes the column. The frequencies are 10000^-(i / (D/4)), as in the
        pretraining; the published formula has half that width.
        """
        quarter = self.dim // 4
        index = torch.arange(quarter // 4, device=like.device, dtype=torch.float32)
        frequency = 10000.0 ** (-index / quarter)

        def along(count: int) -> Tensor:
            distance = torch.arange(count, device=like.device) * (self.patch * self.gsd_m / 10)
            angle = distance[:, None] * frequency
            return torch.cat([angle.sin(), angle.cos()], dim=-1)

        column = along(grid.w)[None].expand(grid.h, -1, -1)
        row = along(grid.h)[:, None].expand(-1, grid.w, -1)
        return torch.cat([column, row], dim=-1).to(like.dtype)

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply a block; attention is global, so that extra tokens need no special treatment."""
        block: Any = self.blocks[index]
        return self._add_residuals(index, tokens, block.attn(block.norm1(tokens)))

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply a block to query rows that attend to its input."""
        block: Any = self.blocks[index]
        attended = block.attn(block.norm1(tokens), queries=block.norm1(queries))
        return self._add_residuals(index, queries, attended)

    def _add_residuals(self, index: int, tokens: Tensor, attended: Tensor) -> Tensor:
        block: Any = self.blocks[index]
        between: Tensor = tokens + attended
        after: Tensor = between + block.mlp(block.norm2(between))
        return after + self.parallel_branch(index, between)

    def projections(self, index: int, role: Role) -> list[Projection]:
        """Return the linear layer with this role."""
        block: Any = self.blocks[index]
        owner = block.mlp if role in ("fc1", "fc2") else block.attn
        return [whole(owner.get_submodule(role))]

    def to_map(self, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Reshape tokens to (B, D, h, w), averaged over groups, after the norm if `norm_taps`."""
        return super().to_map(self.norm(tokens) if self.norm_taps else tokens, grid, extra)


class Block(nn.Module):
    """A pre-norm transformer block without layer scale; `Galileo.run` applies it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)


class Attention(nn.Module):
    """Multi-head attention with separate queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, *, queries: Tensor | None = None) -> Tensor:
        """Compute the attention of tokens (B, T, D), or of `queries` (B, Q, D), to tokens."""
        queries = tokens if queries is None else queries
        q, k, v = (
            linear(rows).view(*rows.shape[:2], self.heads, -1).transpose(1, 2)
            for linear, rows in ((self.q, queries), (self.k, tokens), (self.v, tokens))
        )
        attended = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = self.proj(attended)
        return projected


class Mlp(nn.Module):
    """Two linear layers with an exact GELU in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply both layers to tokens (B, T, D)."""
        result: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return result
