"""`rsseg preview`: shows a scene as a model reads it."""

from __future__ import annotations

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.preview.options import PreviewOptions


@command
def preview(options: PreviewOptions) -> None:
    """Draw a scene as a model reads it: bands, value ranges, nodata pixels and tiles.

    Prints the path of the picture, and warnings to stderr.

    Example: rsseg preview scene.tif --model runs/lora-my_city
    """
    from rsseg_cli.commands.preview import preview as previews

    result = previews.preview(options)
    if options.as_json:
        print_json(result)
        return
    typer.echo(result.picture)
    for remark in result.remarks:
        typer.echo(f"note: {remark}", err=True)
