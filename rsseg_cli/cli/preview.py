"""`rsseg preview`: shows a scene as a model reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import (
    MODEL,
    OUTPUT,
    RUNNING,
    BandsOptions,
    JsonOption,
    OverlapOption,
    OverwriteOption,
    argument,
    option,
)


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(BandsOptions, OverlapOption, OverwriteOption, JsonOption):
    """Options of `rsseg preview`."""

    scene: Path = argument("Scene to show.")
    model: Path | None = option(None, "Run folder or model file to compare with.", MODEL)
    output: Path | None = option(None, "PNG file.", OUTPUT, "-o", show_default="SCENE.preview.png")
    tile: int | None = option(
        None, "Side of a tile in pixels.", RUNNING, min=8, show_default="as in training, or 512"
    )


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
