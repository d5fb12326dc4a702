"""Plain vision transformers of timm (Dosovitskiy et al., 2021), and the tiny one of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rsseg_cli.backbones import _resize
from rsseg_cli.backbones._cross_attention import attend, project
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.contract import Grid


class Vit(TimmBackbone):
    """Blocks of timm's `VisionTransformer`: fused queries, keys and values, two layer scales."""

    supports_queries: ClassVar[bool] = True

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "tiny": ModelSize(
            "vit_tiny_patch16_224",
            patch=8,
            changes={"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 64},
            published=False,
        ),
        "small": ModelSize("vit_small_patch16_224.augreg_in21k", patch=16),
        "base": ModelSize("vit_base_patch16_224.augreg_in21k", patch=16),
        "large": ModelSize("vit_large_patch16_224.augreg_in21k", patch=16),
    }

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Embed patches, add positions resampled to the grid, put the prefix in front."""
        patches = self.model.patch_embed(self.renormalise(image))
        tokens: Tensor = self.model.norm_pre(_resize.place(self.model, patches, self.positions))
        return tokens, self.grid_of(image)

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply a block; every token attends to every other, so `extra` needs no care."""
        block = self.model.blocks[index]
        return self._add(index, tokens, block.attn(block.norm1(tokens)))

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply a block to query rows that attend to its input."""
        block = self.model.blocks[index]
        q, k, v = project(self, index, block, queries, tokens)
        return self._add(index, queries, attend(block.attn, q, k, v))

    def _add(self, index: int, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add both branches of a block to tokens."""
        block = self.model.blocks[index]
        between: Tensor = tokens + block.ls1(attended)
        after: Tensor = between + block.ls2(block.mlp(block.norm2(between)))
        return after + self.parallel_branch(index, between)
