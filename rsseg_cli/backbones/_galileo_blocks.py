"""Layers of Galileo; the residual sums are in `galileo.Galileo.run`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Block(nn.Module):
    """A pre-norm transformer block without layer scale."""

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
