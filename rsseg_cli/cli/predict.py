"""`rsseg predict`: scenes in, maps out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsseg_cli.cli import options

if TYPE_CHECKING:
    from rsseg_cli.run.survey import Survey


def _one_of(*choices: str) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value} is none of {', '.join(choices)}")
        return value

    return check


def _listed(*choices: str) -> Callable[[str], list[str]]:
    def complete(typed: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(typed)]

    return complete


def _choice(flag: str, *choices: str, text: str, panel: str) -> Any:
    """Make an option with a few possible values."""
    return typer.Option(
        flag,
        help=text,
        metavar="|".join(choices),
        callback=_one_of(*choices),
        autocompletion=_listed(*choices),
        rich_help_panel=panel,
    )


SPEED, GROUND, MADE = "How it is computed", "Which ground", "What is made"


def predict(
    scenes: Annotated[
        list[str],
        typer.Argument(help="Scenes: files, folders, patterns; `-` reads a list from stdin."),
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run folder or model file; the newest finished run if none."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File for one scene, or folder; SCENE.seg.tif if none."
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities", help="Also SCENE.prob.tif: a band per class.", rich_help_panel=MADE
        ),
    ] = False,
    confidence: Annotated[
        str | None,
        _choice(
            "--confidence",
            "max",
            "margin",
            "entropy",
            text="Also SCENE.conf.tif: how sure the model is, 0 to 1.",
            panel=MADE,
        ),
    ] = None,
    soft: Annotated[
        bool,
        typer.Option(
            "--soft/--no-soft",
            help="With two classes SCENE.soft.tif: the share of the second.",
            rich_help_panel=MADE,
        ),
    ] = True,
    explain: Annotated[
        list[str] | None,
        typer.Option(
            "--explain",
            help="Also SCENE.NAME.tif: a map of the method's own work, e.g. routing. "
            "May be repeated.",
            metavar="NAME",
            rich_help_panel=MADE,
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="Block of the backbone at which to explain, from 0; the last if none.",
            rich_help_panel=MADE,
        ),
    ] = None,
    quicklook: Annotated[
        bool,
        typer.Option(
            "--quicklook/--no-quicklook", help="A PNG beside each map.", rich_help_panel=MADE
        ),
    ] = True,
    reject: Annotated[
        float | None,
        typer.Option(
            help="Pixels whose best class is less probable become nodata.",
            min=0.0,
            max=1.0,
            rich_help_panel=MADE,
        ),
    ] = None,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="Also a .gpkg of polygons: file for one scene, or folder.", rich_help_panel=MADE
        ),
    ] = None,
    sieve: Annotated[
        int,
        typer.Option(
            help="Patches of fewer pixels join a neighbour (polygons).",
            min=0,
            max=10_000,
            rich_help_panel=MADE,
        ),
    ] = 0,
    simplify: Annotated[
        float,
        typer.Option(
            help="Outlines may move by so much, in map units (polygons).",
            min=0.0,
            rich_help_panel=MADE,
        ),
    ] = 0.0,
    format: Annotated[
        str, _choice("--format", "COG", "GTiff", text="Format of maps.", panel=MADE)
    ] = "COG",
    creation: Annotated[
        list[str] | None,
        typer.Option(
            "--co",
            help="Creation option KEY=VALUE of the format. May be repeated.",
            rich_help_panel=MADE,
        ),
    ] = None,
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    aoi: Annotated[
        Path | None,
        typer.Option(help="Vector file: nothing outside is mapped.", rich_help_panel=GROUND),
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(
            help="xmin,ymin,xmax,ymax: nothing outside is mapped.", rich_help_panel=GROUND
        ),
    ] = None,
    bbox_crs: Annotated[
        str | None,
        typer.Option(help="CRS of --bbox; the scene's if none.", rich_help_panel=GROUND),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Side of a tile; the model's own if none.", min=8, rich_help_panel=SPEED),
    ] = None,
    overlap: Annotated[float, options.overlap(SPEED)] = 0.25,
    batch: Annotated[
        int | None, typer.Option(help="Tiles per forward pass.", min=1, rich_help_panel=SPEED)
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the model where a scene is large enough to pay.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    tta: Annotated[
        str | None,
        _choice(
            "--tta", "flips", "turns", text="Average over 4 or 8 views of each tile.", panel=SPEED
        ),
    ] = None,
    precision: Annotated[
        str | None,
        _choice(
            "--precision",
            "auto",
            "bf16",
            "fp16",
            "fp32",
            text="Format of matrix products; the training's if none.",
            panel=SPEED,
        ),
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option(
            "--memory-mb",
            help="Bound on the memory of the process.",
            min=64,
            rich_help_panel=SPEED,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Threads that read the scene.", min=1, rich_help_panel=SPEED)
    ] = 2,
    weights: options.MovedWeights = None,
    device: options.Device = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and what looks wrong.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where an interrupted run stopped; keep whole maps."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="Map the I-th, from 0, of N disjoint shares of the scenes, e.g. in job arrays.",
            metavar="I/N",
            rich_help_panel=SPEED,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Map whole scenes with a fitted model.

    Prints the path of each map. Exit code 3: some scenes failed, the others are written.
    Several processes or machines share the work under `torchrun -m rsseg_cli predict`.

    Example: rsseg predict scene.tif --polygons scene.gpkg
    """
    from rsseg_cli import distributed
    from rsseg_cli.run import predict as runs
    from rsseg_cli.run.request import PredictOptions

    request = PredictOptions(
        output=output,
        tile=tile,
        overlap=overlap,
        batch=batch,
        compile=compile,
        precision=precision,  # type: ignore[arg-type]  # checked above, as are those below
        tta=tta,  # type: ignore[arg-type]
        bands=bands,
        nodata=nodata,
        aoi=aoi,
        bbox=bbox,
        bbox_crs=bbox_crs,
        probabilities=probabilities,
        soft=soft,
        explain=tuple(dict.fromkeys(explain or ())),
        block=block,
        quicklook=quicklook,
        confidence=confidence,  # type: ignore[arg-type]
        reject=reject,
        polygons=polygons,
        sieve=sieve,
        simplify=simplify,
        format=format,
        options=tuple(creation or ()),
        threads=threads,
        memory_mb=memory_mb,
        overwrite=overwrite,
        resume=resume,
        shard=shard,
    )
    with distributed.group(device):
        if dry_run:
            if distributed.is_main():
                found = runs.dry_run(
                    scenes,
                    request,
                    model=model,
                    weights=weights,
                    device=device,
                    quiet=quiet or as_json,
                )
                _show(found, as_json)
            return
        results = runs.predict(
            scenes,
            request,
            model=model,
            weights=weights,
            device=device,
            quiet=quiet or as_json,
            written=None if as_json else typer.echo,
        )
        main = distributed.is_main()
    if main and as_json:
        options.answer({"scenes": [asdict(result) for result in results]})
    failure = runs.failure(results) if main else None
    if failure is not None:
        raise failure


def _show(surveys: list[Survey], as_json: bool) -> None:
    """Print what mapping scenes would take."""
    if as_json:
        options.answer({"scenes": [survey.document() for survey in surveys]})
        return
    for survey in surveys:
        survey.show()
