"""Cross-attention from extra query rows to the tokens of a block, for modules of timm."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Role

ROLES: tuple[Role, Role, Role] = ("q", "k", "v")


def project(
    backbone: Backbone, index: int, block: Any, queries: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries of rows (B, Q, D), and keys and values of tokens (B, T, D), per head."""
    attention, normed = block.attn, block.norm1(tokens)
    projections = []
    for role, rows in zip(ROLES, (block.norm1(queries), normed, normed), strict=True):
        projected = backbone.projections(index, role)[0](rows)
        bias = getattr(attention, f"{role}_bias", None)  # of linear layers without a bias
        projected = projected if bias is None else projected + bias
        heads = projected.reshape(*rows.shape[:2], attention.num_heads, -1)
        projections.append(heads.transpose(1, 2))
    q, k, v = projections
    return attention.q_norm(q), attention.k_norm(k), v


def attend(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute attention and output projection from queries, keys and values per head."""
    attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    projected: Tensor = attention.proj(attention.norm(attended))
    return projected
