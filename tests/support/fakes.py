"""Small models, and stand-ins for the training loop with real backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from test_contract import BANDS, HEADS
from torch import Tensor

from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Backbone, Bands, Head, Method, QueryShape
from rsseg_cli.find import find
from rsseg_cli.segmenter import Segmenter

Made = TypeVar("Made", bound=Method[Any])

RGB = Bands(
    names=("red", "green", "blue"),
    wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(100.0, 90.0, 80.0),
    std=(50.0, 40.0, 30.0),
    dtype="uint8",
)
UNIT_RGB = RGB.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
"""The same bands for values that are not standardised."""
QUERIES = QueryShape(100, 256)
"""The queries of Mask2Former's head."""


def tiny_vit(bands: Bands = RGB) -> Vit:
    return Vit(Vit.Config(name="vit_tiny"), bands)


def at_vit_large(
    kind: type[Made],
    bands: Bands = RGB,
    *,
    queries: QueryShape | None = QUERIES,
    **settings: Any,
) -> tuple[Dinov2, Made]:
    """Build a method on ViT-L, for which papers print counts, without allocating tensors."""
    with torch.device("meta"):
        backbone = Dinov2(Dinov2.Config(name="dinov2_large", pretrained=False), bands)
        config = kind.Config.model_validate(settings)
        return backbone, kind.build(config, backbone, queries if kind.makes_queries else None)


def build(
    method: str,
    *,
    seed: int = 0,
    head: str = "linear",
    queries: QueryShape | None = None,
    **settings: Any,
) -> Segmenter:
    """Build a tiny model with three classes whose method has these settings."""
    torch.manual_seed(seed)
    vit = find("backbones", "vit", Backbone)
    backbone = vit(vit.Config(name="vit_tiny"), BANDS)  # type: ignore[call-arg]
    kind = find("methods", method, Method)
    built = kind.build(kind.Config.model_validate(settings), backbone, queries)
    scorer = find("heads", head, Head)
    config = scorer.Config.model_validate(HEADS[head])
    made = scorer(config, dim=backbone.dim, maps=built.num_feature_maps(backbone), classes=3)
    return Segmenter(backbone, built, made, BANDS)


def sample(seed: int, count: int = 1, side: int = 32) -> tuple[Tensor, Tensor]:
    """Return labelled images (B, C, H, W), the same for the same seed."""
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
