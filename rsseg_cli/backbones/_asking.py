"""Attention of a few rows to the tokens of a block, for timm's attention modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Role

ROLES: tuple[Role, Role, Role] = ("q", "k", "v")


def heads(rows: Tensor, count: int) -> Tensor:
    """Part rows (B, T, count * width) by head: (B, count, T, width)."""
    return rows.reshape(*rows.shape[:2], count, -1).transpose(1, 2)


def attend(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Do what is left of a module's work once it has its queries, keys and values by head."""
    found = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
    mixed: Tensor = attention.proj(attention.norm(found))
    return mixed
