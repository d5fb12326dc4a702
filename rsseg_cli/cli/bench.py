"""`rsseg bench`: measures speed on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli.command import Command, Group, command, print_json
from rsseg_cli.commands.options import (
    DATA,
    MODEL,
    RUNNING,
    DeviceOption,
    JsonOption,
    Option,
    QuietOption,
    SourcesOption,
    TilingOptions,
    complete_backbone,
    complete_presets,
)

app = typer.Typer(cls=Group, help="Measure speed on this machine.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class BenchPredictOptions(TilingOptions, DeviceOption, JsonOption):
    """Options of `rsseg bench predict`."""

    model: Annotated[
        Path | None, Option("Run folder or model file.", MODEL, default="a small random model")
    ] = None
    size: Annotated[int, Option("Side of the scene in pixels.", DATA, minimum=64)] = 2048
    rounds: Annotated[int, Option("Repetitions; the fastest is reported.", RUNNING, minimum=1)] = 3


@dataclass(frozen=True, kw_only=True)
class BenchFitOptions(SourcesOption, DeviceOption, JsonOption, QuietOption):
    """Options of `rsseg bench fit`."""

    method: Annotated[
        tuple[str, ...],
        Option(
            "Method preset to measure; repeatable.",
            MODEL,
            short="-m",
            default="all",
            complete=complete_presets("methods"),
        ),
    ] = ()
    no_methods: Annotated[bool, Option("Measure the training loop only.", MODEL)] = False
    backbone: Annotated[
        str | None,
        Option(
            "Backbone.",
            MODEL,
            default="dinov3_large on a GPU, else dinov3_small",
            complete=complete_backbone,
        ),
    ] = None
    tile: Annotated[
        int | None, Option("Side of a tile in pixels.", RUNNING, default="by device", minimum=32)
    ] = None
    batch: Annotated[
        int | None, Option("Tiles per step.", RUNNING, default="by device", minimum=1)
    ] = None
    steps: Annotated[int, Option("Steps per repetition.", RUNNING, minimum=2)] = 8
    rounds: Annotated[int, Option("Repetitions of each loop.", RUNNING, minimum=1)] = 3


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
