"""What a run would do: pairs, classes with their shares, parameters by part, memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from rsseg_cli.config import RunConfig
from rsseg_cli.distributed import world
from rsseg_cli.run.sources import Sources
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.words import counted

ACTIVATIONS = {False: 34, True: 4}
"""Floats kept per token, channel and block: the branches of a block, or only its input."""


@dataclass
class Plan:
    """The answer of `--dry-run`; its keys are those of the machine output."""

    source: str
    model: str
    training: str
    pairs: dict[str, int]
    classes: list[dict[str, Any]]
    parameters: dict[str, int]
    memory_mb: float
    warnings: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Give the machine-readable form."""
        return asdict(self)

    def show(self) -> None:
        """Print what a person wants to know before a long run."""
        console = Console(highlight=False)
        console.print(f"source    {self.source}")
        console.print(f"model     {self.model}")
        console.print(f"training  {self.training}, about {self.memory_mb:,.0f} MB")
        for row in self.classes:
            share = "-" if row["share"] is None else f"{row['share']:7.2%}"
            console.print(f"  class {row['id']:>3}  {share:>8}  {row['name']}")
        for text in self.warnings:
            console.print(f"warning: {text}")


def describe_source(sources: Sources) -> str:
    """Say in a line what is learned from."""
    places = [pair.place for _, pairs in sources.train for pair in pairs]
    held = sum(len(pairs) for _, pairs in sources.validation)
    sizes = {f"{place.width}x{place.height}" for place in places}
    size = sizes.pop() if len(sizes) == 1 else "mixed sizes"
    names = sources.bands.names
    return (
        f"{sources.name}  train {len(places)} / val {held} scenes {size}, "
        f"{counted(len(names), 'band')} ({' '.join(names)}), "
        f"{counted(len(sources.classes), 'class')}"
    )


def describe_model(config: RunConfig, counts: dict[str, int]) -> str:
    """Say in a line what the model is made of."""
    name = getattr(config.backbone, "name", "")
    return (
        f"{name} + {config.method.name} + {config.head.name}     "
        f"{counts['backbone'] / 1e6:.1f} M backbone, {counts['method'] / 1e6:.2f} M method, "
        f"{counts['head'] / 1e6:.1f} M head; {counts['tuned'] / 1e6:.2f} M tuned"
    )


def describe_training(config: RunConfig, device: str, precision: str) -> str:
    """Say in a line how it is trained."""
    training = config.training
    return (
        f"{counted(training.steps, 'step')}, batch {training.batch}, {config.data.tile} px, "
        f"{precision} on {device}, seed {training.seed}"
    )


def count_parameters(model: Segmenter) -> dict[str, int]:
    """Count parameters by part; `trainable_now` is what requires a gradient at this moment."""
    parts = {"backbone": model.backbone, "method": model.method, "head": model.head}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts["tuned"] = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    counts["trainable_now"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts


def estimate_memory_mb(config: RunConfig, model: Segmenter, counts: dict[str, int]) -> float:
    """Estimate the peak of a step: weights, gradients, moments, and activations of the blocks.

    A rough number for choosing a batch: within a factor of two for the heads and methods here.
    """
    backbone, training = model.backbone, config.training
    side = -(-config.data.tile // backbone.patch)
    images = training.batch / training.accumulate / world()
    tokens = images * (side * side + backbone.num_prefix_tokens)
    kept = ACTIVATIONS[training.recompute] * tokens * backbone.dim * backbone.depth
    pixels = images * config.data.tile**2 * (len(backbone.bands) + 2 * model.head.classes)
    total = sum(counts[part] for part in ("backbone", "method", "head"))
    return (4 * total + 12 * counts["tuned"] + 4 * kept + 4 * pixels) / 2**20
