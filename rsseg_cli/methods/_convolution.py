"""Small convolutional pieces that methods share: the cascade, its norm, and how they start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rsseg_cli import share

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


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that counts each batch once, also where activations are computed again.

    It uses its running statistics when a batch has one value per channel. The statistics of a
    batch are those of all processes; one of them may have no image of it at all.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if self.training and share.together():
            return self._together(x)
        single = x.numel() == x.shape[1]
        if not self.training or not (single or _again.get()):
            return super().forward(x)
        mean, var = self.running_mean, self.running_var
        if mean is not None and var is not None and _again.get():
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=not single, eps=self.eps)

    def _together(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            sums = torch.cat((wide.sum((0, 2, 3)), wide.new_full((1,), x[:, 0].numel())))
            sums = share.mean(sums)
            count = sums[-1]
            mean = sums[:-1] / count
            centred = wide - mean[:, None, None]
            var = share.mean(centred.square().sum((0, 2, 3))) / count
            normal = centred * (var + self.eps).rsqrt()[:, None, None]
            weighed = normal * self.weight[:, None, None] + self.bias[:, None, None]
        if not _again.get():
            self._follow(mean.detach(), var.detach(), count * share.of_all(1))
        return weighed.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics, with the unbiased variance of `count` values."""
        new = {"running_mean": mean, "running_var": var * count / (count - 1).clamp(min=1)}
        for name, value in new.items():
            self.get_buffer(name).lerp_(value, cast(float, self.momentum))
        self.get_buffer("num_batches_tracked").add_(1)


class Cascade(nn.Module):
    """Four equal groups of channels filtered one after the other by the same small network.

    t_0 = f(z_0), t_j = f(t_{j-1} + z_j) with f = filter, batch norm, ReLU; the result is
    ReLU(BN(Conv1x1(concat(t) + z))). Later groups see ever larger surroundings.

    Args:
        channels: Channels of z, a multiple of 4.
        filter: Maps (B, channels / 4, h, w) to the same shape.
    """

    GROUPS = 4

    def __init__(self, channels: int, filter: nn.Module) -> None:
        super().__init__()
        self.step = nn.Sequential(filter, BatchNorm(channels // self.GROUPS), nn.ReLU())
        self.merge = nn.Sequential(nn.Conv2d(channels, channels, 1), BatchNorm(channels), nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        first, *rest = z.chunk(self.GROUPS, dim=1)
        steps = [self.step(first)]
        for part in rest:
            steps.append(self.step(steps[-1] + part))
        merged: Tensor = self.merge(torch.cat(steps, dim=1) + z)
        return merged


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
