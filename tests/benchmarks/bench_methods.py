"""Trained parameters and cost of a step of each method: the table of methods in the README.

    python tests/benchmarks/bench_methods.py [--side 224] [--batch 2] [--rounds 3] [--json]

The share counts what may ever train at the size of a ViT-L beside the encoder's own parameters,
without the head, with the settings of each method's preset; nothing is computed for it. A step is
forward, backward and update of a ViT-S with a linear head, random weights and default settings, in
processor seconds beside those of `frozen`; methods take turns and the fastest step counts. Work
around steps (estimates, selections) comes on top. SpectralMoE goes without depth; DepthForge, which
cannot, has a random depth encoder of the same size.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from rgb import BANDS

from rsseg_cli import presets
from rsseg_cli.backbones.vit import ModelSize, Vit
from rsseg_cli.contract import Backbone, Method, QueryShape
from rsseg_cli.find import find, names
from rsseg_cli.heads.linear import Linear
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer

WITHOUT_DEPTH: dict[str, dict[str, Any]] = {
    "spectralmoe": {"depth": "off"},
    "depthforge": {"depth": "random"},
}
"""Depth encoders never train, so that they count for the time only."""
QUERIES = QueryShape(100, 256)
"""Of the mask head in the presets."""


class Encoder(Vit):
    """Plain transformers of two published sizes, with random weights."""

    sizes: ClassVar = {
        "small": ModelSize("vit_small_patch16_224", patch=16, published=False),
        "large": ModelSize("vit_large_patch16_224", patch=16, published=False),
    }


@dataclass
class Row:
    """One method: what trains, in numbers and beside the encoder, and its relative step."""

    method: str
    tuned: int
    share: float
    step: float = float("inf")


def build(method: str, size: str, *, preset: bool) -> tuple[Backbone, Method[Any]]:
    """Make a method in an encoder, with its preset's settings or the defaults."""
    backbone = Encoder(Encoder.Config(name=f"vit_{size}"), BANDS)
    kind = find("methods", method, Method)
    settings: dict[str, Any] = {}
    if preset:
        settings = dict(presets.read(presets.find("methods", method)).values["method"])
        settings.pop("name")
    config = kind.Config.model_validate(settings | WITHOUT_DEPTH.get(method, {}))
    queries = QUERIES if preset and kind.makes_queries else None
    return backbone, kind.build(config, backbone, queries)


def count(method: str) -> Row:
    """Count what trains at ViT-L on the meta device."""
    with torch.device("meta"):
        backbone, made = build(method, "large", preset=True)
    whole = sum(parameter.numel() for parameter in backbone.parameters())
    tuned = sum(parameter.numel() for _, parameter in made.trainable_parameters(backbone))
    return Row(method, tuned, tuned / whole)


def prepare(method: str) -> tuple[Segmenter, torch.optim.Optimizer]:
    """Make a small model and its optimizer."""
    torch.manual_seed(0)
    backbone, made = build(method, "small", preset=False)
    head = Linear(
        Linear.Config(), dim=backbone.dim, maps=made.num_feature_maps(backbone), classes=6
    )
    model = Segmenter(backbone, made, head, BANDS).train()
    return model, optimizer.build(optimizer.Optimization(lr=1e-4), model)


def step(model: Segmenter, adam: torch.optim.Optimizer, side: int, batch: int) -> float:
    """Run a step; return its processor seconds."""
    image = torch.randn(batch, 3, side, side)
    label = torch.randint(0, 6, (batch, side, side))
    started = time.process_time()
    torch.autograd.backward(torch.stack(list(model(image, label).values())).sum())
    adam.step()
    adam.zero_grad(set_to_none=True)
    return time.process_time() - started


def measure(side: int, batch: int, rounds: int) -> list[Row]:
    """Measure every method, in turns."""
    rows = {method: count(method) for method in names("methods")}
    for _ in range(rounds):
        for method, row in rows.items():
            model, adam = prepare(method)
            step(model, adam, side, batch)  # the first one makes room
            row.step = min(row.step, step(model, adam, side, batch))
    frozen = rows["frozen"].step
    for row in rows.values():
        row.step /= frozen
    return list(rows.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = measure(asked.side, asked.batch, asked.rounds)
    if asked.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print("| method | trains | of ViT-L | step |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| `{row.method}` | {row.tuned / 1e6:.2f} M | {100 * row.share:.1f} % "
            f"| {row.step:.2f} x |"
        )


if __name__ == "__main__":
    main()
