"""Values that backbone, method and head pass to each other during a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from rsseg_cli.contract.token_grid import Grid


@dataclass
class Features:
    """Input of a head: feature maps from the backbone, and queries and losses from the method."""

    maps: list[Tensor]
    """Each (B, D, h, w), finest first; those of a plain transformer have the same size."""
    queries: Tensor | None = None
    """(Q, D') or (B, Q, D'), for heads that take queries."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Additional terms of the loss, already weighted."""


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


StateT = TypeVar("StateT", bound=State)
