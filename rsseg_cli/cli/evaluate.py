"""`rsseg evaluate`: a map against the truth, or a model on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def evaluate(
    prediction: Annotated[
        Path | None,
        typer.Argument(help="A class map or a soft map, e.g. scene.seg.tif, scene.soft.tif."),
    ] = None,
    truth: Annotated[
        Path | None, typer.Argument(help="Its truth: a raster on the same grid, or polygons.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Run folder or model file, with --on.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", help="DATASET[:split[:domain]] to evaluate the model on."),
    ] = None,
    experiment: options.Experiment = None,
    class_map: options.ClassMap = None,
    data_root: options.DataRoot = None,
    field: Annotated[
        str | None, typer.Option(help="Attribute of vector truth that says the class.")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Resample the truth to the map's grid (nearest).")
    ] = False,
    ignore: Annotated[
        list[int] | None,
        typer.Option(
            help="Id in the truth that is no class; 255 if 0 and 255 are no mask. May be repeated."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", help="What names the classes: a dataset.yaml or another map."),
    ] = None,
    soft: Annotated[
        bool | None,
        typer.Option(
            "--soft/--no-soft",
            help="Whether the map holds shares of one object; else known by floats or a scale.",
            show_default=False,
        ),
    ] = None,
    boundary: Annotated[
        int, typer.Option(help="Width in pixels of the outlines to compare; 0: none.", min=0)
    ] = 3,
    image: Annotated[
        Path | None, typer.Option(help="The scene that was mapped, shown in the report.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder for report.json, .csv, .md and .html.")
    ] = None,
    weights: options.MovedWeights = None,
    overlap: Annotated[float, options.overlap()] = 0.25,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Score a map against its truth, or a model on labelled data.

    Examples: rsseg evaluate scene.seg.tif truth.gpkg --field class

    rsseg evaluate --model runs/lora-loveda --on loveda:val:urban
    """
    from rsseg_cli import distributed
    from rsseg_cli.commands.evaluate import evaluate as runs

    with distributed.group(device):
        result = runs.evaluate(
            runs.EvaluateOptions(
                prediction=prediction,
                truth=truth,
                model=model,
                on=on or (),
                experiment=experiment,
                class_map=class_map,
                data_root=data_root,
                field=field,
                align=align,
                ignore=ignore or (),
                classes=classes,
                soft=soft,
                boundary_px=boundary or None,
                image=image,
                pictures=report is not None,
                weights=weights,
                overlap=overlap,
                device=device,
                quiet=quiet or as_json,
            )
        )
        if not distributed.leads():
            return
        if report is not None:
            result.write(report)
        if as_json:
            options.answer(result.to_json())
        else:
            result.show()
