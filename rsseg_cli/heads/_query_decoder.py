"""Lets queries look at the levels and say a class and a mask each (arXiv 2112.01527, 3.2).

As in `_pixel_decoder`, the modules are those of transformers and how they are called is written
out. Attention goes through torch's fused kernels, and where a query may look is decided on the
level's own grid: resizing the pixel embeddings once equals resizing every layer's masks.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

from rsseg_cli.heads._criterion import Predictions
from rsseg_cli.heads._pixel_decoder import positions

Position = Literal["learned", "method"]
Content = Literal["learned", "projected"]


class QueryDecoder(nn.Module):
    """Nine layers, by default, of masked attention, attention among queries, and an MLP.

    Args:
        config: transformers' settings.
        classes: Number of classes K.
        position: Whether the queries' positions are own parameters or given to `forward`.
        content: Whether what the queries start from are own parameters or a linear map of the
            positions.
    """

    def __init__(
        self, config: Mask2FormerConfig, *, classes: int, position: Position, content: Content
    ) -> None:
        super().__init__()
        width = config.hidden_dim
        self.heads = config.num_attention_heads
        self.parts: Any = Mask2FormerTransformerModule(width, config)
        self.class_predictor = nn.Linear(width, classes + 1)
        self.content = nn.Linear(width, width) if content == "projected" else None
        if position == "method":
            del self.parts.queries_embedder
        if content == "projected":
            del self.parts.queries_features
        for parameter in self.parts.decoder.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, levels: list[Tensor], pixels: Tensor, given: Tensor | None, *, every_layer: bool
    ) -> Predictions:
        """Decode.

        Args:
            levels: Three maps (B, C, h, w), coarsest first.
            pixels: (B, C, h, w) pixel embeddings.
            given: (Q, C) or (B, Q, C) positions of the queries, unless they are learned.
            every_layer: Predict after every layer, not only after the last.
        """
        place = self.parts.queries_embedder.weight if given is None else given
        place = place.expand(len(pixels), -1, -1)
        if self.content is None:
            queries = self.parts.queries_features.weight.expand(len(pixels), -1, -1)
        else:
            queries = self.content(place)
        memories, keys, scaled = [], [], []
        for index, level in enumerate(levels):
            memory = level.flatten(2).transpose(1, 2) + self.parts.level_embed.weight[index]
            memories.append(memory)
            keys.append(memory + positions(level))
            scaled.append(_shrink(pixels, level))

        layers = self.parts.decoder.layers
        classes, embeddings = [], []
        for index in range(len(layers) + 1):
            normal = self.parts.decoder.layernorm(queries)
            last = index == len(layers)
            embedding = self.parts.decoder.mask_predictor.mask_embedder(normal)
            if every_layer or last:
                classes.append(self.class_predictor(normal))
                embeddings.append(embedding)
            if not last:
                turn = index % len(levels)
                allowed = _allowed(embedding, scaled[turn])
                queries = self._layer(
                    layers[index], queries, place, keys[turn], memories[turn], allowed
                )
        return Predictions(torch.stack(classes), torch.stack(embeddings), pixels)

    def _layer(
        self,
        layer: Any,
        queries: Tensor,
        place: Tensor,
        keys: Tensor,
        memory: Tensor,
        allowed: Tensor,
    ) -> Tensor:
        """Apply a layer's three residual lines, each followed by its norm."""
        looked = self._look(layer.cross_attn, queries + place, keys, memory, allowed)
        queries = layer.cross_attn_layer_norm(queries + looked)
        talked = self._talk(layer.self_attn, queries, place)
        queries = layer.self_attn_layer_norm(queries + talked)
        queries = queries + layer.fc2(layer.fc1(queries).relu())
        result: Tensor = layer.final_layer_norm(queries)
        return result

    def _look(
        self, attention: Any, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """Attend to the level's cells (B, h*w, C) that `allowed` (B, 1, Q, h*w) admits."""
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        given = zip((queries, keys, values), weights, biases, strict=True)
        q, k, v = (self._split(F.linear(*each)) for each in given)
        return self._join(attention, F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))

    def _talk(self, attention: Any, queries: Tensor, place: Tensor) -> Tensor:
        """Attend among the queries."""
        placed = queries + place
        q = self._split(attention.q_proj(placed))
        k = self._split(attention.k_proj(placed))
        v = self._split(attention.v_proj(queries))
        return self._join(attention, F.scaled_dot_product_attention(q, k, v))

    def _split(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        return tokens.view(batch, count, self.heads, -1).transpose(1, 2)  # (B, heads, T, C/heads)

    def _join(self, attention: Any, tokens: Tensor) -> Tensor:
        joined: Tensor = attention.out_proj(tokens.transpose(1, 2).flatten(2))
        return joined


@torch.no_grad()
def _allowed(embeddings: Tensor, pixels: Tensor) -> Tensor:
    """Say where each query may look: inside its own mask, or anywhere if that is empty.

    Args:
        embeddings: (B, Q, C) of the layer before.
        pixels: (B, C, h*w) on the level's grid.

    Returns:
        (B, 1, Q, h*w) booleans.
    """
    inside = embeddings @ pixels >= 0
    return (inside | ~inside.any(-1, keepdim=True))[:, None]


@torch.no_grad()
def _shrink(pixels: Tensor, level: Tensor) -> Tensor:
    return F.interpolate(pixels, level.shape[-2:], mode="bilinear").flatten(2)
