"""AdamW over all trainable parameters, and the learning rate schedule."""

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
    """Settings of the optimizer and the learning rate schedule."""

    lr: float = Field(1.0e-4, gt=0)
    backbone_lr: float | None = Field(None, gt=0)
    """Learning rate of the backbone's trainable weights; null means `lr`."""
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad_norm: float | None = Field(None, gt=0)
    """Maximum norm of the gradient; null means no clipping."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warmup from 0."""


def factor(settings: Optimization, step: int, steps: int) -> float:
    """Return the factor, in (0, 1], of the learning rate at `step` of `steps`."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, steps - settings.warmup)
    if settings.schedule == "poly":
        return float((1 - done) ** settings.power)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


def build(settings: Optimization, model: Segmenter) -> AdamW:
    """Build AdamW with a parameter group per learning rate and weight decay.

    Biases, norms, scalars, embeddings and the parameters of `no_weight_decay` have no decay.
    AdamW leaves parameters without a gradient unchanged.
    """
    no_decay = {id(p) for p in model.method.no_weight_decay()}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            no_decay.update(id(p) for p in module.parameters())
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in model.trainable_parameters():
        lr = settings.backbone_lr if name.startswith("backbone.") else None
        decays = parameter.ndim >= 2 and id(parameter) not in no_decay
        key = (lr or settings.lr, settings.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    return AdamW(
        [
            {"params": parameters, "lr": lr, "weight_decay": decay, "full_lr": lr}
            for (lr, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        fused=next(model.parameters()).is_cuda or None,
    )


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state; `fused` and `foreach`, which depend on the device, stay as they are."""
    groups = [
        group | {"fused": current["fused"], "foreach": current["foreach"]}
        for group, current in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})


def set_lr(optimizer: Optimizer, settings: Optimization, step: int, steps: int) -> float:
    """Set every group's learning rate for a step; return the first group's."""
    scale = factor(settings, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * scale
    return float(optimizer.param_groups[0]["lr"])
