"""`rsseg bench`: what this machine does with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options

app = typer.Typer(help="Measure speed on this machine.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    pass


@app.command("predict")
def predict(
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run folder or model file; a random small one if none."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the scene in pixels.", min=64)] = 2048,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile; the model's own if none.", min=8)
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Share of a tile that overlaps its neighbour.", min=0.0, max=0.5)
    ] = 0.25,
    batch: Annotated[int | None, typer.Option(help="Tiles per forward pass.", min=1)] = None,
    rounds: Annotated[int, typer.Option(help="The fastest of so many counts.", min=1)] = 3,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Map a scene made for it: end to end beside bare forward passes, a null model beside a copy.

    Example: rsseg bench predict --model runs/my-run
    """
    from rsseg_cli.commands.bench import predict as bench

    found = bench.bench_predict(
        model, size=size, tile=tile, batch=batch, overlap=overlap, rounds=rounds, device=device
    )
    if as_json:
        options.answer(found)
    else:
        bench.show(found)


@app.command("fit")
def fit(
    src: options.Sources = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Preset for the table; may be repeated. All if none."),
    ] = None,
    no_methods: Annotated[
        bool, typer.Option("--no-methods", help="Measure the loop only.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone; dinov3_large on a GPU, else dinov3_small.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a tile in pixels.", min=32)] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles per step.", min=1)] = None,
    steps: Annotated[int, typer.Option(help="Steps per count.", min=2)] = 8,
    rounds: Annotated[int, typer.Option(help="Counts of each loop, in turns.", min=1)] = 3,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train with random weights: the loop beside a bare one, every method's step beside frozen's.

    Example: rsseg bench fit --src my_city/ --method lora
    """
    from rsseg_cli.commands.bench import fit as bench

    found = bench.bench_fit(
        src or (),
        methods=() if no_methods else methods or [bench.EVERY_METHOD],
        size={"backbone": backbone, "tile": tile, "batch": batch},
        steps=steps,
        rounds=rounds,
        device=device,
        say=lambda text: None if quiet or as_json else typer.echo(text, err=True),
    )
    if as_json:
        options.answer(found)
    else:
        bench.show(found)
