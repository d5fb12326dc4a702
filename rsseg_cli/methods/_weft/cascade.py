"""Cascaded convolutions of WEFT, their batch norm and their initialisation."""

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
"""Mean and variance (2, C) of each batch norm of a cascade, or None."""


class BatchNorm(nn.Module):
    """Batch norm applied at several sites of a network, with running statistics for each.

    Scale and shift are shared. In training each site is normalised by its own batch, so that common
    running statistics, as in a shared `torch.nn.BatchNorm2d`, would fit no site in evaluation. The
    first batches of a site have equal weights: a site with few batches has their mean, without
    torch's initial 0 and 1. A site without batches, such as an expert that no training image chose
    at a level, is evaluated with the mean of the other sites.

    The statistics of a batch are those of all processes; a process may have no image of it. A batch
    of one value per channel has no variance and is normalised by the running statistics.

    Args:
        channels: Channels C.
        sites: Number of sites.
        running: "own" statistics for each site, or "shared" ones.
    """

    MOMENTUM = 0.1
    EPS = 1e-5

    def __init__(self, channels: int, sites: int = 1, running: RunningStatistics = "own") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running = running
        rows = sites if running == "own" else 1
        self.statistics: Tensor
        self.batches: Tensor
        start = torch.tensor([[0.0], [1.0]]).repeat(rows, 1, channels)
        self.register_buffer("statistics", start)
        self.register_buffer("batches", torch.zeros(rows, dtype=torch.long))

    def forward(self, x: Tensor, site: int = 0) -> Tensor:
        """Normalise (B, C, h, w) at a site, and update its statistics in training."""
        normal, statistics = self.normalise(x, site)
        self.update([statistics], site)
        return normal

    def normalise(self, x: Tensor, site: int) -> tuple[Tensor, Tensor | None]:
        """Normalise (B, C, h, w); also return the batch's mean and unbiased variance (2, C).

        They are None if the running statistics are used: in evaluation, and with one value per
        channel.
        """
        if self.training and batch_shard.is_sharded():
            return self._normalise_sharded(x)
        if not self.training or x.numel() == x.shape[1]:
            mean, var = self.statistics[site if self.running == "own" else 0]
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.EPS), None
        statistics = x.new_zeros(2, x.shape[1], dtype=torch.float32)
        mean, var = statistics
        normal = F.batch_norm(
            x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.EPS
        )
        return normal, statistics

    @torch.no_grad()
    def update(self, statistics: Sequence[Tensor | None], site: int) -> None:
        """Update the running statistics of consecutive sites by those of batches."""
        batches = [batch for batch in statistics if batch is not None]
        if batches and self.running == "own":
            self._update(slice(site, site + len(batches)), torch.stack(batches))
        else:
            for batch in batches:
                self._update(slice(0, 1), batch[None])

    def train(self, mode: bool = True) -> Self:
        """Set the mode; in evaluation, sites without a batch get the mean of the others."""
        if not mode:
            counted = (self.batches > 0)[:, None, None]
            mean = (self.statistics * counted).sum(0) / counted.sum().clamp(min=1)
            keep = counted | ~counted.any()
            self.statistics.copy_(torch.where(keep, self.statistics, mean))
        return super().train(mode)

    def _normalise_sharded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            sums = torch.cat((wide.sum((0, 2, 3)), wide.new_full((1,), x[:, 0].numel())))
            sums = batch_shard.mean(sums)
            count = sums[-1]
            mean = sums[:-1] / count
            centred = wide - mean[:, None, None]
            var = batch_shard.mean(centred.square().sum((0, 2, 3))) / count
            normal = centred * (var + self.EPS).rsqrt()[:, None, None]
            scaled = normal * self.weight[:, None, None] + self.bias[:, None, None]
        total = count * batch_shard.global_count(1)
        unbiased = var * total / (total - 1).clamp(min=1)
        return scaled.to(x.dtype), torch.stack((mean, unbiased)).detach()

    def _update(self, rows: slice, statistics: Tensor) -> None:
        """Update rows of the running statistics by those of batches (rows, 2, C)."""
        self.batches[rows] += 1
        momentum = (1 / self.batches[rows]).clamp(min=self.MOMENTUM)
        self.statistics[rows].lerp_(statistics, momentum[:, None, None])


class Cascade(nn.Module):
    """Cascade of four equal groups of channels, filtered in turn by the same small network.

    t_0 = f(z_0), t_j = f(t_{j-1} + z_j) with f = filter, batch norm, ReLU; the result is
    ReLU(BN(Conv1x1(concat(t) + z))). The receptive field grows from group to group.

    Args:
        channels: Channels of z, a multiple of 4.
        filter: Maps (B, channels / 4, h, w) to the same shape.
        levels: Number of pyramid levels that use this module.
        running: See `BatchNorm`; a site is a level, and for f a group within a level.
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
        """Map (B, channels, h, w) of a level to the same shape; backward recomputes activations."""
        merged, statistics = recomputed(self.filtered, z, level)
        self.update(statistics, level)
        return cast(Tensor, merged)

    def filtered(self, z: Tensor, level: int) -> tuple[Tensor, BatchStatistics]:
        """Compute the result and the batch statistics, without an update of the running ones."""
        outputs: list[Tensor] = []
        statistics = []
        for number, group in enumerate(z.chunk(self.GROUPS, dim=1)):
            filtered = self.filter(outputs[-1] + group if outputs else group)
            normal, batch = self.norm.normalise(filtered, level * self.GROUPS + number)
            outputs.append(F.relu(normal))
            statistics.append(batch)
        merged = pointwise(self.merge, torch.cat(outputs, dim=1) + z)
        normal, batch = self.merge_norm.normalise(merged, level)
        return F.relu(normal), (*statistics, batch)

    def update(self, statistics: BatchStatistics, level: int) -> None:
        """Update the running statistics by those that `filtered` returned."""
        *groups, merged = statistics
        self.norm.update(groups, level * self.GROUPS)
        self.merge_norm.update([merged], level)


def initialise(module: nn.Module) -> None:
    """Initialise as ViT-Adapter and WEFT do, for `Module.apply`.

    Convolutions get N(0, 2 / fan out), linear layers a truncated normal of 0.02, biases 0.
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
