"""`rsseg preview`: what a model will see of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def preview(
    scene: Annotated[Path, typer.Argument(help="The scene.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Run folder or model file: its bands, mean, std and tiles."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The PNG; SCENE.preview.png if none.")
    ] = None,
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile; the model's own, else 512.", min=8)
    ] = None,
    overlap: Annotated[float, options.overlap()] = 0.25,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw what a model will see of a scene: bands, stretch, missing pixels, tiles.

    Prints the path of the picture, and what looks wrong on stderr.

    Example: rsseg preview scene.tif --model runs/lora-my_city
    """
    from rsseg_cli.commands.preview import preview as draw

    found = draw(
        scene,
        model=model,
        output=output,
        bands=bands,
        nodata=nodata,
        tile=tile,
        overlap=overlap,
        overwrite=overwrite,
    )
    if as_json:
        options.answer(found.to_json())
        return
    typer.echo(found.picture)
    for remark in found.remarks:
        typer.echo(f"note: {remark}", err=True)
