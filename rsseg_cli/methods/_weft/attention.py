"""Deformable attention with layer norms, as in ViT-Adapter (arXiv 2205.08534)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from rsseg_cli.layers.deformable_attention import DeformableAttention
from rsseg_cli.layers.recompute import recomputed


class NormedDeformableAttention(DeformableAttention):
    """Deformable attention with a layer norm for the queries and one for the values.

    Backward recomputes the activations, as the samples need far more memory than the result.
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
        """Normalise and attend, see `DeformableAttention.forward`."""
        attend = super().forward

        def normed(queries: Tensor, values: Tensor) -> Tensor:
            return attend(self.query_norm(queries), reference, self.value_norm(values), sizes)

        return cast(Tensor, recomputed(normed, queries, values))
