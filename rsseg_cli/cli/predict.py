"""`rsseg predict`: scenes in, maps out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


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
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile; the model's own if none.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(help="Share of a tile that overlaps its neighbour.", min=0.0, max=0.75)
    ] = 0.25,
    batch: Annotated[int | None, typer.Option(help="Tiles per forward pass.", min=1)] = None,
    bands: Annotated[
        str | None, typer.Option(help="File bands in the model's order, e.g. 4,3,2,1.")
    ] = None,
    nodata: Annotated[
        float | None, typer.Option(help="Value of missing pixels, in place of the file's own.")
    ] = None,
    memory_mb: Annotated[
        int, typer.Option("--memory-mb", help="Bound on the memory of the blending strip.", min=64)
    ] = 1024,
    weights: Annotated[
        Path | None, typer.Option(help="Weights file of the backbone, if it has moved.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads that read the scene.", min=1)] = 2,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Map whole scenes with a fitted model.

    Prints the path of each map. Exit code 3: some scenes failed, the others are written.

    Example: rsseg predict scene.tif
    """
    from rsseg_cli.run import predict as runs

    results = runs.predict(
        scenes,
        model=model,
        output=output,
        tile=tile,
        overlap=overlap,
        batch=batch,
        bands=bands,
        nodata=nodata,
        memory_mb=memory_mb,
        weights=weights,
        threads=threads,
        device=device,
        overwrite=overwrite,
        quiet=quiet or as_json,
        written=None if as_json else typer.echo,
    )
    if as_json:
        options.answer({"scenes": [asdict(result) for result in results]})
    failure = runs.failure(results)
    if failure is not None:
        raise failure
