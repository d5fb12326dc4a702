"""AdamW over all trainable parameters, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Strict


class Optimization(Strict):
    """Settings of the optimizer and its schedule."""

    lr: float = Field(1.0e-4, gt=0)
    backbone_lr: float | None = Field(None, gt=0)
    """Learning rate of the backbone's own trainable weights; null means `lr`."""
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; null means no clipping."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    warmup: int = Field(0, ge=0)
    """Steps over which the learning rate grows linearly from 0."""


def factor(settings: Optimization, step: int, steps: int) -> float:
    """Return the factor of the learning rate at `step` of `steps`, in (0, 1]."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    if settings.schedule == "poly":
        return float((1 - done) ** settings.power)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def build(settings: Optimization, model: Segmenter) -> AdamW:
    """Build AdamW with a group of parameters per learning rate and weight decay.

    Biases, norms, scalars, embeddings and what `no_weight_decay` returns do not decay.
    AdamW skips parameters without a gradient: they stay bit-equal.
    """
    free = {id(p) for p in model.method.no_weight_decay()}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            free.update(id(p) for p in module.parameters())
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in model.trainable_parameters():
        own = name.startswith("backbone.") and settings.backbone_lr is not None
        lr = settings.backbone_lr if own and settings.backbone_lr else settings.lr
        still = parameter.ndim < 2 or id(parameter) in free
        groups.setdefault((lr, 0.0 if still else settings.weight_decay), []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "lr": lr, "weight_decay": decay, "full_lr": lr}
            for (lr, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        fused=next(model.parameters()).is_cuda or None,
    )


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state, perhaps of another device; `fused` and `foreach` stay those of this one."""
    groups = [
        group | {"fused": own["fused"], "foreach": own["foreach"]}
        for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})


def set_lr(optimizer: Optimizer, settings: Optimization, step: int, steps: int) -> float:
    """Set every group's learning rate for a step; return the first group's."""
    share = factor(settings, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * share
    return float(optimizer.param_groups[0]["lr"])
