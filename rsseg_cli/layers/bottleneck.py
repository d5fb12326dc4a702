"""Two-layer bottleneck branch of AdaptFormer and Earth-Adapter."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu"]


class Bottleneck(nn.Module):
    """Linear map to `hidden` channels, activation, dropout, and a linear map back to D channels.

    The second map starts at 0, so that a new branch adds exactly 0.
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: Activation = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        activation = F.relu if self.activation == "relu" else F.gelu
        hidden = F.dropout(activation(self.down(x)), self.dropout, self.training)
        return self.up(hidden)  # type: ignore[no-any-return]
