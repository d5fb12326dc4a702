"""Values that backbone, method and head pass to each other: token grid, features, state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Layout of patch tokens: N = h * w * groups, ordered row, column, group (group fastest)."""

    h: int
    w: int
    groups: int = 1

    @property
    def tokens(self) -> int:
        """Number of patch tokens N."""
        return self.h * self.w * self.groups

    def to_images(self, tokens: Tensor) -> Tensor:
        """Reshape patch tokens (B, N, D) to one image per group: (B*groups, D, h, w)."""
        batch, _, dim = tokens.shape
        images = tokens.reshape(batch, self.h, self.w, self.groups, dim).permute(0, 3, 4, 1, 2)
        return images.reshape(batch * self.groups, dim, self.h, self.w)

    def to_tokens(self, images: Tensor) -> Tensor:
        """Compute the inverse of `to_images`: (B*groups, D, h, w) to (B, N, D)."""
        dim = images.shape[1]
        tokens = images.reshape(-1, self.groups, dim, self.h, self.w).permute(0, 3, 4, 1, 2)
        return tokens.reshape(-1, self.tokens, dim)

    def mean_over_groups(self, tokens: Tensor) -> Tensor:
        """Average patch tokens (B, N, D) over the groups of each location: (B, D, h, w)."""
        batch, _, dim = tokens.shape
        averaged = tokens.reshape(batch, self.h, self.w, self.groups, dim).mean(3)
        return averaged.permute(0, 3, 1, 2)


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
