"""Blocks of timm's `Eva`: rotary positions, layer scales as parameters, gated MLPs."""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from torch import Tensor

from rsseg_cli.backbones._cross_attention import attend, project
from rsseg_cli.backbones._timm import TimmBackbone, third, whole
from rsseg_cli.contract import Bands, Grid, Projection, Role


class EvaBackbone(TimmBackbone):
    """Base class of DINOv3 and EVA02."""

    supports_queries: ClassVar[bool] = True

    def __init__(self, config: TimmBackbone.Config, bands: Bands) -> None:
        super().__init__(config, bands)
        self._rotation: tuple[object, Tensor] | None = None
        for block in self.model.blocks:
            # Otherwise timm uses the fused weight without calling its module and its branches.
            block.attn.qkv_bias_separate = True

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply a block; queries and keys of patches are rotated by their position."""
        block = self.model.blocks[index]
        rotation = self.rotation(grid, extra, tokens.device)
        return self._add_residuals(index, tokens, block.attn(block.norm1(tokens), rope=rotation))

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply a block to query rows that attend to its input."""
        block = self.model.blocks[index]
        q, k, v = project(self, index, block, queries, tokens)
        prefix, patches = k.tensor_split([self.num_prefix_tokens], 2)
        rotation = self.rotation(grid, 0, tokens.device)
        patches = apply_rot_embed_cat(patches, rotation, half=block.attn.rotate_half)
        k = torch.cat([prefix, patches], 2).type_as(v)
        return self._add_residuals(index, queries, attend(block.attn, q, k, v))

    def _add_residuals(self, index: int, tokens: Tensor, attended: Tensor) -> Tensor:
        block = self.model.blocks[index]
        between = tokens + _scaled(attended, block.gamma_1)
        mlp = _scaled(block.mlp(block.norm2(between)), block.gamma_2)
        return between + mlp + self.parallel_branch(index, between)

    def rotation(self, grid: Grid, extra: int, device: torch.device) -> Tensor:
        """Compute sines and cosines of all tokens after the prefix, (extra + N, 2 * head width).

        Extra tokens have no position: sine 0 and cosine 1 do not change them. The result is cached,
        as all blocks of a forward pass use it.
        """
        key = (grid, extra, device)
        if self._rotation is None or self._rotation[0] != key:
            with torch.inference_mode(mode=False), torch.no_grad():
                patches = self.model.rope.get_embed(shape=(grid.h, grid.w)).to(device)
                width = patches.shape[-1] // 2
                identity = torch.cat([patches.new_zeros(width), patches.new_ones(width)])
                self._rotation = key, torch.cat([identity.expand(extra, -1), patches])
        return self._rotation[1]

    def projections(self, index: int, role: Role) -> list[Projection]:
        """Return the linear layers with this role; the first layer of a gated MLP is two."""
        attention, mlp = self.model.blocks[index].attn, self.model.blocks[index].mlp
        if role == "fc2":
            return [whole(mlp.fc2)]
        if role == "fc1":
            gated = hasattr(mlp, "fc1_g")
            return [whole(mlp.fc1_g), whole(mlp.fc1_x)] if gated else [whole(mlp.fc1)]
        if attention.qkv is None:
            return [whole(getattr(attention, f"{role}_proj"))]
        return [third(attention.qkv, "qkv".index(role))]


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale
