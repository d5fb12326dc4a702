"""The narrow two-layer branch that AdaptFormer and Earth-Adapter put beside frozen layers."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu"]


class Bottleneck(nn.Module):
    """Adds act(x W1 + b1) W2 + b2, D to `hidden` to D: W1 random, the rest 0.

    At the start it adds exactly 0.
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: Activation = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        act = F.relu if self.activation == "relu" else F.gelu
        kept = F.dropout(act(self.down(x)), self.dropout, self.training)
        return self.up(kept)  # type: ignore[no-any-return]
