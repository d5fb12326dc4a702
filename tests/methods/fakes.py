"""Stands in for the training loop: steps and probes that run real backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from test_contract import BANDS, HEADS
from torch import Tensor

from rsseg_cli.contract import Backbone, Head, Method
from rsseg_cli.find import find
from rsseg_cli.segmenter import Segmenter


def build(method: str, *, seed: int = 0, head: str = "linear", **settings: Any) -> Segmenter:
    """A tiny model with three classes whose method has these settings."""
    torch.manual_seed(seed)
    vit = find("backbones", "vit", Backbone)
    backbone = vit(vit.Config(name="vit_tiny"), BANDS)  # type: ignore[call-arg]
    kind = find("methods", method, Method)
    built = kind(kind.Config.model_validate(settings), backbone)
    scorer = find("heads", head, Head)
    config = scorer.Config.model_validate(HEADS[head])
    made = scorer(config, dim=backbone.dim, maps=built.maps(backbone), classes=3)
    return Segmenter(backbone, built, made, BANDS)


def sample(seed: int, count: int = 1, side: int = 32) -> tuple[Tensor, Tensor]:
    """Labelled images (B, C, H, W), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, len(BANDS), side, side, generator=generator)
    return image, (image[:, 0] > 0).long() + (image[:, 1] > 0.5).long()


@dataclass
class FakeProbe:
    model: Segmenter
    image: Tensor
    label: Tensor
    factor: float = 1.0

    def loss(self) -> Tensor:
        return self.factor * torch.stack(list(self.model(self.image, self.label).values())).sum()

    def backward(self) -> float:
        self.model.zero_grad(set_to_none=True)
        loss = self.loss()
        torch.autograd.backward(loss)
        return loss.item()


@dataclass
class FakeStep:
    """A step whose probes are `sample(1000 * index + number)`."""

    model: Segmenter
    index: int = 0
    total: int = 1000
    factor: float = 1.0
    averaged: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    side: int = 32
    probed: int = 0

    def probes(self, count: int, *, samples: int = 1) -> Iterator[FakeProbe]:
        for number in range(count):
            self.probed += 1
            image, label = sample(1000 * self.index + number, samples, self.side)
            yield FakeProbe(self.model, image, label, self.factor)
        self.model.zero_grad(set_to_none=True)

    def average(self, tensor: Tensor) -> Tensor:
        return self.averaged(tensor)
