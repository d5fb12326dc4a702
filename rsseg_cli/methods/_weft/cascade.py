"""Small convolutional pieces that methods share: the cascade, its norm, and how they start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.contract import batch_shard
from rsseg_cli.layers.pointwise import pointwise
from rsseg_cli.layers.recompute import recomputed

RunningStatistics = Literal["own", "shared"]
BatchStatistics = tuple[Tensor | None, ...]
"""Mean and variance (2, C) of each batch norm of a cascade; None where there are none."""


class BatchNorm(nn.Module):
    """Batch norm that stands in several places of a network, with running statistics for each.

    The scale and the shift are common. In training each place is normalised by its batch; one
    running mixture of all places, as a shared `torch.nn.BatchNorm2d` keeps it, fits none of them
    afterwards. The first batches of a place count alike, so that a place with few batches has
    their mean, not torch's start of 0 and 1. A place without any, say of an expert that no
    training image of a level chose, is tested with the mean of the others.

    The statistics of a batch are those of all processes; one of them may have no image of it at
    all. A batch of one value per channel has none: it is normalised by the running ones.

    Args:
        channels: Channels C.
        places: Number of places.
        running: "own" statistics for each place, or "shared" ones.
    """

    MOMENTUM = 0.1
    EPS = 1e-5

    def __init__(self, channels: int, places: int = 1, running: RunningStatistics = "own") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running = running
        rows = places if running == "own" else 1
        self.statistics: Tensor
        self.batches: Tensor
        start = torch.tensor([[0.0], [1.0]]).repeat(rows, 1, channels)
        self.register_buffer("statistics", start)
        self.register_buffer("batches", torch.zeros(rows, dtype=torch.long))

    def forward(self, x: Tensor, place: int = 0) -> Tensor:
        """Normalise (B, C, h, w) at one of the places, and follow its statistics in training."""
        normal, statistics = self.normalise(x, place)
        self.follow([statistics], place)
        return normal

    def normalise(self, x: Tensor, place: int) -> tuple[Tensor, Tensor | None]:
        """Normalise (B, C, h, w); also return the batch's mean and unbiased variance (2, C).

        None where the running ones are used: in a test, and with one value per channel.
        """
        if self.training and batch_shard.is_sharded():
            return self._together(x)
        if not self.training or x.numel() == x.shape[1]:
            mean, var = self.statistics[place if self.running == "own" else 0]
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.EPS), None
        found = x.new_zeros(2, x.shape[1], dtype=torch.float32)
        mean, var = found
        normal = F.batch_norm(
            x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.EPS
        )
        return normal, found

    @torch.no_grad()
    def follow(self, statistics: Sequence[Tensor | None], place: int) -> None:
        """Move the running statistics of places that follow each other to those of batches."""
        found = [one for one in statistics if one is not None]
        if not found:
            return
        if self.running == "own":
            self._move(slice(place, place + len(found)), torch.stack(found))
        else:
            for one in found:
                self._move(slice(0, 1), one[None])

    def train(self, mode: bool = True) -> Self:
        """Set training or testing; for a test, give places without a batch the others' mean."""
        if not mode:
            counted = (self.batches > 0)[:, None, None]
            mean = (self.statistics * counted).sum(0) / counted.sum().clamp(min=1)
            keep = counted | ~counted.any()
            self.statistics.copy_(torch.where(keep, self.statistics, mean))
        return super().train(mode)

    def _together(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            sums = torch.cat((wide.sum((0, 2, 3)), wide.new_full((1,), x[:, 0].numel())))
            sums = batch_shard.mean(sums)
            count = sums[-1]
            mean = sums[:-1] / count
            centred = wide - mean[:, None, None]
            var = batch_shard.mean(centred.square().sum((0, 2, 3))) / count
            normal = centred * (var + self.EPS).rsqrt()[:, None, None]
            weighed = normal * self.weight[:, None, None] + self.bias[:, None, None]
        of_all = count * batch_shard.global_count(1)
        unbiased = var * of_all / (of_all - 1).clamp(min=1)
        return weighed.to(x.dtype), torch.stack((mean, unbiased)).detach()

    def _move(self, rows: slice, statistics: Tensor) -> None:
        """Move rows of the running statistics to new ones (rows, 2, C)."""
        self.batches[rows] += 1
        part = (1 / self.batches[rows]).clamp(min=self.MOMENTUM)
        self.statistics[rows].lerp_(statistics, part[:, None, None])


class Cascade(nn.Module):
    """Four equal groups of channels filtered one after the other by the same small network.

    t_0 = f(z_0), t_j = f(t_{j-1} + z_j) with f = filter, batch norm, ReLU; the result is
    ReLU(BN(Conv1x1(concat(t) + z))). Later groups see ever larger surroundings.

    Args:
        channels: Channels of z, a multiple of 4.
        filter: Maps (B, channels / 4, h, w) to the same shape.
        levels: Levels of a pyramid that pass here.
        running: See `BatchNorm`; a place is a level, and for f a step within a level.
    """

    GROUPS = 4

    def __init__(
        self, channels: int, filter: nn.Module, *, levels: int, running: RunningStatistics
    ) -> None:
        super().__init__()
        self.filter = filter
        self.norm = BatchNorm(channels // self.GROUPS, levels * self.GROUPS, running)
        self.merge = nn.Conv2d(channels, channels, 1)
        self.merge_norm = BatchNorm(channels, levels, running)

    def forward(self, z: Tensor, level: int) -> Tensor:
        """Map (B, channels, h, w) of a level to the same shape; activations are not kept."""
        merged, statistics = recomputed(self.filtered, z, level)
        self.follow(statistics, level)
        return cast(Tensor, merged)

    def filtered(self, z: Tensor, level: int) -> tuple[Tensor, BatchStatistics]:
        """Do so without a change of running statistics; return those of the batch as well."""
        steps: list[Tensor] = []
        statistics = []
        for number, part in enumerate(z.chunk(self.GROUPS, dim=1)):
            filtered = self.filter(steps[-1] + part if steps else part)
            normal, found = self.norm.normalise(filtered, level * self.GROUPS + number)
            steps.append(F.relu(normal))
            statistics.append(found)
        merged = pointwise(self.merge, torch.cat(steps, dim=1) + z)
        normal, found = self.merge_norm.normalise(merged, level)
        return F.relu(normal), (*statistics, found)

    def follow(self, statistics: BatchStatistics, level: int) -> None:
        """Follow what `filtered` returned."""
        *steps, merged = statistics
        self.norm.follow(steps, level * self.GROUPS)
        self.merge_norm.follow([merged], level)


def initialise(module: nn.Module) -> None:
    """Set a convolution to N(0, 2 / fan out) and a linear map to N(0, 0.02), biases to 0.

    For `Module.apply`; these are the starting values of ViT-Adapter, which WEFT kept.
    """
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
