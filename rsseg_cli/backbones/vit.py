"""Plain vision transformers of timm (Dosovitskiy et al., 2021), and a tiny one for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

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

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply a block; attention is global, so that extra tokens need no special treatment."""
        block = self.model.blocks[index]
        return self._add_residuals(index, tokens, block.attn(block.norm1(tokens)))

    def cross_attend(self, index: int, queries: Tensor, tokens: Tensor, grid: Grid) -> Tensor:
        """Apply a block to query rows that attend to its input."""
        block = self.model.blocks[index]
        q, k, v = project(self, index, block, queries, tokens)
        return self._add_residuals(index, queries, attend(block.attn, q, k, v))

    def _add_residuals(self, index: int, tokens: Tensor, attended: Tensor) -> Tensor:
        block = self.model.blocks[index]
        between: Tensor = tokens + block.ls1(attended)
        after: Tensor = between + block.ls2(block.mlp(block.norm2(between)))
        return after + self.parallel_branch(index, between)
