"""Small convolutional pieces that methods share: the cascade, its norm, and how they start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rsseg_cli import share

Running = Literal["own", "shared"]

_again: ContextVar[bool] = ContextVar("again", default=False)
"""Whether a forward pass is the second one, inside backward."""


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Call a function or module, drop its activations, and compute them again in backward.

    Results, gradients and running statistics are those of a plain call. Worth it where many
    activations stand against little work: small convolutions, not matrix products.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, context_fn=_contexts)
    return result


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _second_pass()


@contextmanager
def _second_pass() -> Iterator[None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)


class BatchNorm(nn.Module):
    """Batch norm that stands in several places of a network, with running statistics for each.

    The scale and the shift are common. In training each place is normalised by its batch; one
    running mixture of all places, as a shared `torch.nn.BatchNorm2d` keeps it, fits none of them
    afterwards. The first batches of a place count alike, so that a place with few batches has
    their mean, not torch's start of 0 and 1. A place without any, say of an expert that no
    training image of a level chose, has the mean of the others.

    A batch is counted once, also where activations are computed again. Its statistics are those
    of all processes; one of them may have no image of it at all. Where it has one value per
    channel, the running statistics are used.

    Args:
        channels: Channels C.
        places: Number of places.
        running: "own" statistics for each place, or "shared" ones.
    """

    MOMENTUM = 0.1
    EPS = 1e-5

    def __init__(self, channels: int, places: int = 1, running: Running = "own") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.rows = places if running == "own" else 1
        self.running_mean: Tensor
        self.running_var: Tensor
        self.batches: Tensor
        self.register_buffer("running_mean", torch.zeros(self.rows, channels))
        self.register_buffer("running_var", torch.ones(self.rows, channels))
        self.register_buffer("batches", torch.zeros(self.rows, dtype=torch.long))

    def forward(self, x: Tensor, place: int = 0) -> Tensor:
        """Normalise (B, C, h, w) at one of the places."""
        row = place if self.rows > 1 else 0
        if self.training and share.together():
            return self._together(x, row)
        if not self.training or x.numel() == x.shape[1]:
            mean, var = self.running_mean[row], self.running_var[row]
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.EPS)
        mean, var = torch.zeros_like(self.running_mean[0]), torch.zeros_like(self.running_var[0])
        normal = F.batch_norm(
            x, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.EPS
        )
        self._follow(row, mean, var)
        return normal

    def train(self, mode: bool = True) -> Self:
        """Set training or testing; for a test, give places without a batch the others' mean."""
        counted = self.batches > 0
        if not mode and counted.any() and not counted.all():
            for running in (self.running_mean, self.running_var):
                running[~counted] = running[counted].mean(0)
        return super().train(mode)

    def _together(self, x: Tensor, row: int) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            sums = torch.cat((wide.sum((0, 2, 3)), wide.new_full((1,), x[:, 0].numel())))
            sums = share.mean(sums)
            count = sums[-1]
            mean = sums[:-1] / count
            centred = wide - mean[:, None, None]
            var = share.mean(centred.square().sum((0, 2, 3))) / count
            normal = centred * (var + self.EPS).rsqrt()[:, None, None]
            weighed = normal * self.weight[:, None, None] + self.bias[:, None, None]
        of_all = count.detach() * share.of_all(1)
        self._follow(row, mean.detach(), var.detach() * of_all / (of_all - 1).clamp(min=1))
        return weighed.to(x.dtype)

    @torch.no_grad()
    def _follow(self, row: int, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics to those of a batch, with its unbiased variance."""
        if _again.get():
            return
        self.batches[row] += 1
        part = (1 / self.batches[row]).clamp(min=self.MOMENTUM)
        self.running_mean[row].lerp_(mean, part)
        self.running_var[row].lerp_(var, part)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product over pixels, for maps with channels last in memory."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, out, h, w)."""
        pixels = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return pixels.permute(0, 3, 1, 2)


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

    def __init__(self, channels: int, filter: nn.Module, *, levels: int, running: Running) -> None:
        super().__init__()
        self.filter = filter
        self.norm = BatchNorm(channels // self.GROUPS, levels * self.GROUPS, running)
        self.merge = Pointwise(channels, channels)
        self.merge_norm = BatchNorm(channels, levels, running)

    def forward(self, z: Tensor, level: int) -> Tensor:
        """Map (B, channels, h, w) of a level to the same shape."""
        steps: list[Tensor] = []
        for number, part in enumerate(z.chunk(self.GROUPS, dim=1)):
            filtered = self.filter(steps[-1] + part if steps else part)
            steps.append(F.relu(self.norm(filtered, level * self.GROUPS + number)))
        return F.relu(self.merge_norm(self.merge(torch.cat(steps, dim=1) + z), level))


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
