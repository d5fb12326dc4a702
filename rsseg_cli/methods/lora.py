"""LoRA: low-rank updates of projections in every block (Hu et al. 2022, arXiv 2106.09685)."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.contract import Backbone, Method, Role, State


class LowRank(nn.Module):
    """Low-rank update alpha/r * (x A) B of a projection, without bias and dropout.

    A (d_in, r) starts uniform in +-1/sqrt(d_in), as in loralib and peft. B (r, d_out) starts at
    zero, so that the initial update is exactly 0.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(inputs, rank))
        self.up = nn.Parameter(torch.zeros(rank, outputs))
        bound = inputs**-0.5
        nn.init.uniform_(self.down, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        return self.scale * ((x @ self.down) @ self.up)


class Lora(Method[State]):
    """Trains low-rank updates of the projections of some roles."""

    class Config(Method.Config):
        """Settings of LoRA."""

        rank: int = Field(16, ge=1)
        alpha: float = Field(16.0, gt=0)
        """The update is scaled by alpha / rank."""
        roles: tuple[Role, ...] = Field(("q", "v"), min_length=1)
        """Projections of a block that are updated; q and v as in the paper's section 4.2."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.updates = nn.ModuleList()
        for index in range(backbone.depth):
            for role in config.roles:
                for projection in backbone.projections(index, role):
                    update = LowRank(
                        projection.module.in_features,
                        projection.rows.stop - projection.rows.start,
                        rank=config.rank,
                        alpha=config.alpha,
                    )
                    self.updates.append(update)
                    projection.add_branch(partial(update))
