"""`rsseg evaluate`: a map against the truth, or a model on a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsseg_cli.cli import options
from rsseg_cli.errors import RssegError

if TYPE_CHECKING:
    from rsseg_cli.commands.evaluate.experiment import Scored
    from rsseg_cli.report.report import Report


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

    result: Report | Scored
    on_data = partial(
        runs.model,
        data_root=data_root,
        weights=weights,
        overlap=overlap,
        boundary_px=boundary or None,
        device=device,
        quiet=quiet or as_json,
    )
    of_maps = {
        "--field": field,
        "--align": align,
        "--ignore": ignore,
        "--classes": classes,
        "--soft": soft is not None,
        "--image": image,
    }
    if experiment is not None or on:
        _refuse("a model", of_maps)
    elif prediction is not None:
        _refuse("a map", {"--model": model, "--weights": weights})
    with distributed.group(device):
        if experiment is not None:
            from rsseg_cli.commands.evaluate.experiment import Chosen, require_alone, score

            require_alone({"a map": prediction, "--on": on, "--class-map": class_map})
            result = score(Chosen.find(experiment), on_data, model=model, data_root=data_root)
        elif on and prediction is None:
            result = on_data(model, on, class_map=class_map)
        elif class_map is not None:
            raise RssegError(
                "--class-map joins the classes of a model and a dataset",
                where="--class-map",
                fix="rsseg evaluate --model RUN --on DATASET --class-map NAME",
            )
        elif prediction is not None and truth is not None and not on:
            result = runs.rasters(
                prediction,
                truth,
                field=field,
                align=align,
                ignore=ignore or (),
                classes=classes,
                boundary_px=boundary or None,
                image=image,
                pictures=report is not None,
                soft=soft,
            )
        else:
            raise RssegError(
                "there is nothing to compare",
                fix="rsseg evaluate MAP TRUTH, rsseg evaluate --model RUN --on DATASET, or "
                "rsseg evaluate --experiment NAME",
            )
        if not distributed.is_main():
            return
        if report is not None:
            result.write(report)
        if as_json:
            options.answer(result.to_json())
        else:
            result.show()


def _refuse(evaluated: str, options: Mapping[str, object]) -> None:
    """Refuse options that say nothing about what is evaluated."""
    given = [name for name, value in options.items() if value]
    if given:
        raise RssegError(
            f"{given[0]} does nothing where {evaluated} is evaluated",
            fix=f"leave {' and '.join(given)} out",
        )
