"""`rsseg preview`: shows a scene as a model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import (
    DATA,
    MODEL,
    OUTPUT,
    RUNNING,
    Argument,
    BandsOptions,
    JsonOption,
    Option,
    OverlapOption,
    OverwriteOption,
)


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(OverlapOption, BandsOptions, OverwriteOption, JsonOption):
    """Options of `rsseg preview`."""

    scene: Annotated[Path, Argument("Scene to show.", DATA)]
    model: Annotated[Path | None, Option("Run folder or model file to compare with.", MODEL)] = None
    output: Annotated[
        Path | None, Option("PNG file.", OUTPUT, short="-o", default="SCENE.preview.png")
    ] = None
    tile: Annotated[
        int | None,
        Option("Side of a tile in pixels.", RUNNING, default="as in training, or 512", minimum=8),
    ] = None


@command
def preview(options: PreviewOptions) -> None:
    """Draw a scene as a model reads it: bands, value ranges, nodata pixels and tiles.

    Prints the path of the picture, and warnings to stderr.

    Example: rsseg preview scene.tif --model runs/lora-my_city
    """
    from rsseg_cli.commands.preview import preview as draw

    drawn = draw(
        options.scene,
        model=options.model,
        output=options.output,
        bands=options.bands,
        nodata=options.nodata,
        tile=options.tile,
        overlap=options.overlap,
        overwrite=options.overwrite,
    )
    if options.as_json:
        print_json(drawn.to_json())
        return
    typer.echo(drawn.picture)
    for remark in drawn.remarks:
        typer.echo(f"note: {remark}", err=True)
