"""The layers that Galileo is made of; the residual sums stand in `galileo.Galileo.run`."""

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
        """Compute attention of tokens (B, T, D), or of rows `queries` (B, Q, D), to tokens."""
        queries = tokens if queries is None else queries
        q, k, v = (
            linear(rows).view(*rows.shape[:2], self.heads, -1).transpose(1, 2)
            for linear, rows in ((self.q, queries), (self.k, tokens), (self.v, tokens))
        )
        answer = scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(answer.transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply both maps to tokens (B, T, D)."""
        answer: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return answer


class Affine(nn.Module):
    """x * gain + offset per band; moves with the model, is not stored with it."""

    gain: Tensor
    offset: Tensor

    def __init__(self, gain: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Apply to an image (B, C, H, W)."""
        return image * self.gain + self.offset
