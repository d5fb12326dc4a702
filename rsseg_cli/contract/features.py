"""Values that pass between backbone, method and head during a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from rsseg_cli.contract.token_grid import Grid


@dataclass
class Features:
    """Input of a head: feature maps from the backbone, and queries and losses from the method."""

    maps: list[Tensor]
    """Each (B, D, h, w), finest first. A plain transformer gives several of one size."""
    queries: Tensor | None = None
    """(Q, D') or (B, Q, D') for heads that decode with queries."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Extra terms of the loss, already weighted."""


@dataclass(frozen=True)
class QueryShape:
    """Number and width of the queries that a head takes from the method."""

    count: int
    width: int


@dataclass
class State:
    """State of a method during one forward pass; methods extend it with their own fields."""

    grid: Grid
    extra: int = 0
    """Number of prompt tokens that the method inserts between prefix and patches."""


S = TypeVar("S", bound=State)
