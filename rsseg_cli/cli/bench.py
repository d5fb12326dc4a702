"""`rsseg bench`: measures speed on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from rsseg_cli.cli.command import Command, Group, command, print_json
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

app = typer.Typer(cls=Group, help="Measure speed on this machine.", no_args_is_help=True)


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


@app.command("predict", cls=Command)
@command
def predict(options: BenchPredictOptions) -> None:
    """Compare `predict` with bare forward passes, and a null model with a file copy.

    Example: rsseg bench predict --model runs/my-run
    """
    from rsseg_cli.commands.bench import predict as bench

    measured = bench.bench_predict(
        options.model,
        size=options.size,
        tile=options.tile,
        batch=options.batch,
        overlap=options.overlap,
        rounds=options.rounds,
        device=options.device,
    )
    print_json(measured) if options.as_json else bench.show(measured)


@app.command("fit", cls=Command)
@command
def fit(options: BenchFitOptions) -> None:
    """Compare the training loop with a bare loop, and each method's step with a frozen backbone's.

    Weights are random. Example: rsseg bench fit --src my_city/ --method lora
    """
    from rsseg_cli.commands.bench import fit as bench

    silent = options.quiet or options.as_json
    measured = bench.bench_fit(
        options.src,
        methods=() if options.no_methods else options.method or [bench.EVERY_METHOD],
        size={"backbone": options.backbone, "tile": options.tile, "batch": options.batch},
        steps=options.steps,
        rounds=options.rounds,
        device=options.device,
        say=lambda text: None if silent else typer.echo(text, err=True),
    )
    print_json(measured) if options.as_json else bench.show(measured)
