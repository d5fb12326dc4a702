"""Transformer decoder of Mask2Former: each query predicts a class and a mask.

Written from the paper (arXiv 2112.01527, section 3.2). Parameters have the names and shapes of
`Mask2FormerTransformerModule` in transformers. Attention uses PyTorch's fused kernels. Attention
masks are computed on each level's own grid: resizing the pixel embeddings once gives the same
result as resizing the masks of every layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.heads._criterion import Predictions
from rsseg_cli.heads._pixel_decoder import STRIDES, sine_positions

Position = Literal["learned", "method"]
Content = Literal["learned", "projected"]


class QuerySelfAttention(nn.Module):
    """Multi-head self-attention among the queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        """Map queries (B, Q, C) with position embeddings (B, Q, C) to the same shape."""
        positioned = queries + positions
        q, k, v = self.q_proj(positioned), self.k_proj(positioned), self.v_proj(queries)
        attended: Tensor = self.out_proj(_attend(q, k, v, self.heads))
        return attended


class MaskedCrossAttention(nn.Module):
    """Multi-head attention of the queries to the cells inside their masks.

    Parameters have the names of `torch.nn.MultiheadAttention`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Compute the attention (B, Q, C) of queries (B, Q, C).

        Args:
            queries: Content plus position.
            keys: (B, h*w, C).
            values: (B, h*w, C).
            mask: (B, 1, Q, h*w), True where the query attends to the cell.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((queries, keys, values), weights, biases, strict=True)
        q, k, v = (F.linear(*projection) for projection in inputs)
        attended: Tensor = self.out_proj(_attend(q, k, v, self.heads, mask))
        return attended


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and an MLP; each is residual, with a post-norm."""

    def __init__(self, width: int, *, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = QuerySelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.cross_attn = MaskedCrossAttention(width, heads)
        self.cross_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """Map queries (B, Q, C) with position embeddings (B, Q, C) to the same shape.

        `keys`, `values` and `mask` are those of `MaskedCrossAttention.forward`.
        """
        attended = self.cross_attn(queries + positions, keys, values, mask)
        queries = self.cross_attn_layer_norm(queries + attended)
        queries = self.self_attn_layer_norm(queries + self.self_attn(queries, positions))
        result: Tensor = self.final_layer_norm(queries + self.fc2(self.fc1(queries).relu()))
        return result


class MaskedDecoder(nn.Module):
    """Decoder layers that attend to the levels in turn, each inside the masks predicted so far."""

    def __init__(self, width: int, *, layers: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(width, heads=heads, ffn=ffn) for _ in range(layers)
        )
        self.layernorm = nn.LayerNorm(width)
        mask_embedder = nn.Sequential(
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, width)),
        )
        self.mask_predictor = nn.ModuleDict({"mask_embedder": mask_embedder})

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        pixels: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Decode queries (B, Q, C) with position embeddings (B, Q, C).

        Args:
            queries: Initial content of the queries.
            positions: Their position embeddings.
            keys: (B, h*w, C) of each level.
            values: (B, h*w, C) of each level.
            pixels: (B, C, h*w) pixel embeddings on the grid of each level.

        Returns:
            Normalised queries and mask embeddings, both (B, Q, C), before the first layer and after
            each one.
        """
        outputs = [self.layernorm(queries)]
        embeddings = [self.mask_predictor["mask_embedder"](outputs[0])]
        for index, layer in enumerate(self.layers):
            level = index % len(keys)
            mask = attention_mask(embeddings[-1], pixels[level])
            queries = layer(queries, positions, keys[level], values[level], mask)
            outputs.append(self.layernorm(queries))
            embeddings.append(self.mask_predictor["mask_embedder"](outputs[-1]))
        return outputs, embeddings


class QueryDecoder(nn.Module):
    """Queries, the decoder that refines them, and their class predictor.

    Arguments are those of `Mask2Former.Config`, and the number of classes K.
    """

    def __init__(
        self,
        width: int,
        *,
        queries: int,
        layers: int,
        heads: int,
        ffn: int,
        classes: int,
        position: Position,
        content: Content,
    ) -> None:
        super().__init__()
        self.queries_embedder = nn.Embedding(queries, width)
        self.queries_features = nn.Embedding(queries, width)
        self.decoder = MaskedDecoder(width, layers=layers, heads=heads, ffn=ffn)
        self.level_embed = nn.Embedding(len(STRIDES) - 1, width)
        self.class_predictor = nn.Linear(width, classes + 1)
        self.content = nn.Linear(width, width) if content == "projected" else None
        # Deleted after drawing, so that the other initial values do not depend on these settings.
        if position == "method":
            del self.queries_embedder
        if content == "projected":
            del self.queries_features
        for parameter in self.decoder.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, levels: list[Tensor], pixels: Tensor, queries: Tensor | None, *, every_layer: bool
    ) -> Predictions:
        """Predict classes and mask embeddings.

        Args:
            levels: Three maps (B, C, h, w), coarsest first.
            pixels: (B, C, h, w) pixel embeddings.
            queries: (Q, C) or (B, Q, C) position embeddings of the queries; None if learned.
            every_layer: Return the predictions of all layers, not only of the last one.
        """
        positions = self.queries_embedder.weight if queries is None else queries
        positions = positions.expand(len(pixels), -1, -1)
        if self.content is None:
            content = self.queries_features.weight.expand(len(pixels), -1, -1)
        else:
            content = self.content(positions)
        values = [
            level.flatten(2).transpose(1, 2) + embed
            for level, embed in zip(levels, self.level_embed.weight, strict=True)
        ]
        keys = [value + sine_positions(level) for value, level in zip(values, levels, strict=True)]
        resized = [_resize_pixels(pixels, level) for level in levels]
        outputs, embeddings = self.decoder(content, positions, keys, values, resized)
        first = 0 if every_layer else -1
        classes = self.class_predictor(torch.stack(outputs[first:]))
        return Predictions(classes, torch.stack(embeddings[first:]), pixels)


@torch.no_grad()
def attention_mask(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """Return the attention mask (B, 1, Q, h*w): True in a query's mask, all True if it is empty.

    Args:
        embeddings: (B, Q, C) mask embeddings of the previous layer.
        pixels: (B, C, h*w) pixel embeddings on the level's grid.
    """
    inside = embeddings @ pixels >= 0
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None
) -> Tensor:
    """Compute attention of (B, Q, C) to (B, N, C) in `heads` groups of channels."""
    q, k, v = (
        tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)  # (B, heads, T, C/heads)
        for tokens in (queries, keys, values)
    )
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


@torch.no_grad()
def _resize_pixels(pixels: Tensor, level: Tensor) -> Tensor:
    """Resize pixel embeddings (B, C, H, W) to the grid of a level: (B, C, h*w)."""
    return F.interpolate(pixels, level.shape[-2:], mode="bilinear").flatten(2)
