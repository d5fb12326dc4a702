"""Helpers for tests of sparse methods: a loop with all hooks, small models, selected elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fakes import FakeProbe, FakeStep, build, sample
from test_contract import BANDS
from torch import Tensor
from torch.optim import AdamW

from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.methods._fisher.domain_fisher import SelectionScores
from rsseg_cli.methods._fisher.sparse import Sparse
from rsseg_cli.methods.fishertune import FisherTune
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer

SETTINGS = optimizer.Optimization(lr=1e-2, weight_decay=0.3)


class SeededProbe(FakeProbe):
    """Step that uses the same random numbers each time, as the contract demands."""

    def backward(self) -> float:
        torch.manual_seed(7)
        return super().backward()


@dataclass
class SeededStep(FakeStep):
    first: int = 0
    """Number of the first probe: processes draw different ones."""

    def probes(self, count: int, *, samples: int = 1) -> Any:
        for number in range(self.first, self.first + count):
            self.probed += 1
            image, label = sample(1000 * self.index + number, samples, self.side)
            yield SeededProbe(self.model, image, label, self.factor)
        self.model.zero_grad(set_to_none=True)


def made(name: str, *, seed: int = 0, **settings: Any) -> tuple[Segmenter, Sparse]:
    model = build(name, seed=seed, **settings)
    assert isinstance(model.method, Sparse)
    return model.train(), model.method


def weights(model: Segmenter) -> list[Tensor]:
    """Copy the candidates."""
    assert isinstance(model.method, Sparse)
    return [weight.detach().clone() for weight in model.method.candidates.weights]


def train(
    model: Segmenter, steps: range, *, total: int, adam: AdamW | None = None, **step: Any
) -> AdamW:
    """Run the loop with all hooks of the method."""
    method = model.method
    adam = adam or optimizer.build(SETTINGS, model)
    for index in steps:
        now = SeededStep(model, index, total, **step)
        method.before_step(now)
        torch.manual_seed(index)
        torch.autograd.backward(torch.stack(list(model(*sample(index, 2)).values())).sum())
        method.before_update(now)
        adam.step()
        adam.zero_grad(set_to_none=True)
        method.after_step(now)
    return adam


def published_vit_large() -> Dinov2:
    """DINOv2-L as the tables count it: RGB, and positions for 512 pixels in patches of 16."""
    config = Dinov2.Config(name="dinov2_large", pretrained=False)
    with torch.device("meta"):
        backbone = Dinov2(config, BANDS)
        backbone.model.pos_embed = torch.nn.Parameter(torch.empty(1, 1 + 32 * 32, 1024))
        backbone.model.patch_embed.proj = torch.nn.Conv2d(3, 1024, 16, 16)
    return backbone


def chosen(method: Sparse) -> list[Tensor]:
    """Mark the chosen elements of each weight."""
    return method.masks(len(method.sizes) - 1)


QUICK: dict[str, Any] = {"statistics": 3, "gauge": 3, "estimation": 4, "warmup": 2}


def fishertune(seed: int = 0, **settings: Any) -> tuple[Segmenter, FisherTune]:
    model, method = made("fishertune", seed=seed, **(QUICK | settings))
    assert isinstance(method, FisherTune)
    return model, method


def scored(**settings: Any) -> SelectionScores:
    """Score the candidates of a fresh model."""
    factor = settings.pop("factor", 1.0)
    model, method = fishertune(**settings)
    return method.score(SeededStep(model, 2, 20, factor), weights(model))


def selected(**settings: Any) -> tuple[FisherTune, Tensor]:
    """Select; give the set as one vector of marks."""
    factor = settings.pop("factor", 1.0)
    model, method = fishertune(**settings)
    method.before_step(SeededStep(model, 2, 20, factor))
    return method, torch.cat([mask.flatten() for mask in chosen(method)])
