"""Image encoder of Segment Anything (Kirillov et al., 2023), without its neck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn

from rsseg_cli.backbones import _resize
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.contract import Grid


class Sam(TimmBackbone):
    """Blocks with attention in windows of 14 x 14 tokens, except for four with global attention.

    There is no prefix, and prompts are not supported. Branches at q, k and v get windows
    (B * windows, cells, D), padded with zeros.
    """

    takes_prompts: ClassVar[bool] = False
    has_dynamic_size: ClassVar[bool] = False
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize("samvit_base_patch16.sa1b", patch=16),
        "large": ModelSize("samvit_large_patch16.sa1b", patch=16),
        "huge": ModelSize("samvit_huge_patch16.sa1b", patch=16),
    }

    def _build(self, size: ModelSize, seed: int, *, channels: int) -> Any:
        model = super()._build(size, seed, channels=channels)
        model.neck = nn.Identity()
        return model

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename published tensors, without the neck."""
        translated = super().translate(tensors)
        return {key: t for key, t in translated.items() if not key.startswith("neck.")}

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the blocks with global attention."""
        return tuple(i for i, block in enumerate(self.model.blocks) if block.window_size == 0)

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Embed patches and add resized positions."""
        patches = self.model.patch_embed(self.renormalise(image))  # (B, h, w, D)
        table, size = self.model.pos_embed, (patches.shape[1], patches.shape[2])
        old = (table.shape[1], table.shape[2])
        positions = _resize.resize_positions(table.flatten(1, 2), old, size, self.positions)
        return patches.flatten(1, 2) + positions, self.grid_of(image)

    def run(self, index: int, tokens: Tensor, grid: Grid, extra: int = 0) -> Tensor:
        """Apply a block; only its attention uses windows."""
        if extra:
            raise ValueError("SAM does not support extra tokens (takes_prompts is False)")
        block = self.model.blocks[index]
        between: Tensor = tokens + block.ls1(self._attend(block, block.norm1(tokens), grid))
        after: Tensor = between + block.ls2(block.mlp(block.norm2(between)))
        return after + self.parallel_branch(index, between)

    def _attend(self, block: Any, tokens: Tensor, grid: Grid) -> Tensor:
        size, cells = (grid.h, grid.w), tokens.reshape(len(tokens), grid.h, grid.w, -1)
        if not block.window_size:
            attended: Tensor = block.attn(cells)
            return attended.flatten(1, 2)
        windows, padded = window_partition(cells, block.window_size)
        merged = window_unpartition(block.attn(windows), block.window_size, size, padded)
        return merged.flatten(1, 2)
