"""Attention of a few rows to the tokens of a block, for timm's attention modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Role

ROLES: tuple[Role, Role, Role] = ("q", "k", "v")


def project(
    backbone: Backbone, index: int, block: Any, asking: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries of rows (B, Q, D), and keys and values of tokens (B, T, D), per head."""
    attention, seen = block.attn, block.norm1(tokens)
    found = []
    for role, rows in zip(ROLES, (block.norm1(asking), seen, seen), strict=True):
        projected = backbone.projections(index, role)[0](rows)
        beside = getattr(attention, f"{role}_bias", None)  # where the module itself has none
        projected = projected if beside is None else projected + beside
        heads = projected.reshape(*rows.shape[:2], attention.num_heads, -1)
        found.append(heads.transpose(1, 2))
    queries, keys, values = found
    return attention.q_norm(queries), attention.k_norm(keys), values


def attend(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute attention and the output projection from queries, keys and values per head."""
    found = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    mixed: Tensor = attention.proj(attention.norm(found))
    return mixed
