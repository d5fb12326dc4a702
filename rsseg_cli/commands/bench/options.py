"""Options of `rsseg bench`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.commands.options import (
    DATA,
    MODEL,
    RUNNING,
    DeviceOption,
    ProgressOptions,
    SourcesOption,
    TilingOptions,
    complete_backbone,
    complete_presets,
    option,
)


@dataclass(frozen=True, kw_only=True)
class BenchPredictOptions(TilingOptions, DeviceOption):
    """Options of `rsseg bench predict`."""

    model: Path | None = option(
        None, "Run folder or model file.", MODEL, show_default="a small random model"
    )
    size: int = option(2048, "Side of the scene in pixels.", DATA, min=64)
    rounds: int = option(3, "Repetitions; the fastest is reported.", RUNNING, min=1)


@dataclass(frozen=True, kw_only=True)
class BenchFitOptions(SourcesOption, ProgressOptions):
    """Options of `rsseg bench fit`."""

    method: tuple[str, ...] = option(
        (), "Method preset to measure; repeatable.", MODEL, "--method", "-m",
        show_default="all", autocompletion=complete_presets("methods"),
    )  # fmt: skip
    no_methods: bool = option(False, "Measure the training loop only.", MODEL)
    backbone: str | None = option(
        None, "Backbone.", MODEL,
        show_default="dinov3_large on a GPU, else dinov3_small", autocompletion=complete_backbone,
    )  # fmt: skip
    tile: int | None = option(
        None, "Side of a tile in pixels.", RUNNING, min=32, show_default="by device"
    )
    batch: int | None = option(None, "Tiles per step.", RUNNING, min=1, show_default="by device")
    steps: int = option(8, "Steps per repetition.", RUNNING, min=2)
    rounds: int = option(3, "Repetitions of each loop.", RUNNING, min=1)
