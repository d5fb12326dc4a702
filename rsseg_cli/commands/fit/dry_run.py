"""Output of `--dry-run`: data, class frequencies, parameters by part, memory."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from rsseg_cli.config import RunConfig
from rsseg_cli.data.pair import Pair
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.class_index import ClassIndex
from rsseg_cli.distributed import world_size
from rsseg_cli.number_format import counted
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.precision import Precision

ACTIVATIONS = {False: 34, True: 4}
"""Floats kept per token, channel and block, without and with activation checkpointing."""
PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass
class TrainingPlan:
    """Plan of a run; the fields are the keys of the machine-readable output."""

    source: str
    model: str
    training: str
    pairs: dict[str, int]
    classes: list[dict[str, Any]]
    parameters: dict[str, int]
    memory_mb: float
    warnings: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the plan."""
        console = Console(highlight=False)
        console.print(f"source    {self.source}")
        console.print(f"model     {self.model}")
        console.print(f"training  {self.training}, about {self.memory_mb:,.0f} MB")
        for row in self.classes:
            frequency = "-" if row["share"] is None else f"{row['share']:7.2%}"
            console.print(f"  class {row['id']:>3}  {frequency:>8}  {row['name']}")
        for text in self.warnings:
            console.print(f"warning: {text}")


def make_plan(
    config: RunConfig,
    sources: Sources,
    index: ClassIndex | None,
    model: Segmenter,
    precision: Precision,
) -> TrainingPlan:
    """Describe a run; `index` holds the class frequencies, None without labels."""
    counts = _count_parameters(model)
    frequencies = [None] * len(sources.classes) if index is None else map(float, index.shares)
    classes = [
        {"id": cls.id, "name": cls.name, "share": share}
        for cls, share in zip(sources.classes, frequencies, strict=True)
    ]
    train = [pair for _, pairs in sources.train for pair in pairs]
    pairs = {"train": len(train), "validation": sum(len(p) for _, p in sources.validation)}
    return TrainingPlan(
        source=_describe_source(sources, pairs, train),
        model=_describe_model(config, counts),
        training=_describe_training(config, precision),
        pairs=pairs,
        classes=classes,
        parameters=counts,
        memory_mb=_estimate_memory_mb(config, model, counts),
        warnings=_warnings(config, sources, classes, train),
    )


def _warnings(
    config: RunConfig, sources: Sources, classes: list[dict[str, Any]], train: Sequence[Pair]
) -> list[str]:
    warnings = []
    missing = [row["name"] for row in classes if row["share"] == 0]
    if missing:
        warnings.append(
            f"no training pixel of: {', '.join(missing)} (`rsseg data check` compares labels with "
            "the classes of dataset.yaml)"
        )
    if not sources.validation:
        warnings.append("no validation set: the model of the last step is kept")
    tile = config.data.tile
    smallest = min((min(pair.info.width, pair.info.height) for pair in train), default=tile)
    if smallest < tile:
        warnings.append(f"scenes of {smallest} px are padded to tiles of {tile} px")
    return warnings


def _describe_source(sources: Sources, pairs: dict[str, int], train: Sequence[Pair]) -> str:
    sizes = {f"{pair.info.width}x{pair.info.height}" for pair in train}
    size = sizes.pop() if len(sizes) == 1 else "mixed sizes"
    names = sources.bands.names
    return (
        f"{sources.name}  train {pairs['train']} / val {pairs['validation']} scenes {size}, "
        f"{counted(len(names), 'band')} ({' '.join(names)}), "
        f"{counted(len(sources.classes), 'class')}"
    )


def _describe_model(config: RunConfig, counts: dict[str, int]) -> str:
    name = getattr(config.backbone, "name", "")
    return (
        f"{name} + {config.method.name} + {config.head.name}     "
        f"{counts['backbone'] / 1e6:.1f} M backbone, {counts['method'] / 1e6:.2f} M method, "
        f"{counts['head'] / 1e6:.1f} M head; {counts['tuned'] / 1e6:.2f} M tuned"
    )


def _describe_training(config: RunConfig, precision: Precision) -> str:
    training, device = config.training, precision.device
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "CPU"
    return (
        f"{counted(training.steps, 'step')}, batch {training.batch}, {config.data.tile} px, "
        f"{PRECISIONS[precision.dtype]} on {name}, seed {training.seed}"
    )


def _count_parameters(model: Segmenter) -> dict[str, int]:
    """Count parameters by part; `trainable_now` are those that require a gradient at the moment."""
    modules = {"backbone": model.backbone, "method": model.method, "head": model.head}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()}
    counts["tuned"] = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    counts["trainable_now"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts


def _estimate_memory_mb(config: RunConfig, model: Segmenter, counts: dict[str, int]) -> float:
    """Estimate the peak memory of a step: weights, gradients, moments, activations.

    The estimate is within a factor of two for the heads and methods of rsseg.
    """
    backbone, training = model.backbone, config.training
    side = -(-config.data.tile // backbone.patch)
    images = training.batch / training.grad_accumulation / world_size()
    tokens = images * (side * side + backbone.num_prefix_tokens)
    kept = ACTIVATIONS[training.activation_checkpointing] * tokens * backbone.dim * backbone.depth
    pixels = images * config.data.tile**2 * (len(backbone.bands) + 2 * model.head.classes)
    total = sum(counts[part] for part in ("backbone", "method", "head"))
    return (4 * total + 12 * counts["tuned"] + 4 * kept + 4 * pixels) / 2**20
