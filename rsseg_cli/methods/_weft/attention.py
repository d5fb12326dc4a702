"""WEFT's deformable attention with layer norms (after ViT-Adapter, arXiv 2205.08534)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from rsseg_cli.layers.deformable_attention import DeformableAttention
from rsseg_cli.layers.recompute import recomputed


class NormedDeformableAttention(DeformableAttention):
    """Deformable attention with one layer norm for the queries and one for the values.

    Backward recomputes its activations: the samples would take more memory than its result.

    Args:
        dim: Width D of queries, values and result.
        inner: Width of the projected values, a multiple of `heads`.
        levels: Number of feature maps.
        heads: Attention heads.
        points: Points per head and level.
    """

    def __init__(self, dim: int, *, inner: int, levels: int, heads: int, points: int) -> None:
        super().__init__(dim, inner=inner, levels=levels, heads=heads, points=points)
        self.query_norm, self.value_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.initialise()

    def forward(
        self,
        queries: Tensor,
        reference: Tensor,
        values: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Compute the attention as `DeformableAttention.forward` does."""
        return cast(Tensor, recomputed(self._attend, queries, reference, values, sizes))

    def _attend(
        self,
        queries: Tensor,
        reference: Tensor,
        values: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        return super().forward(self.query_norm(queries), reference, self.value_norm(values), sizes)
