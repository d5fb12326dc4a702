"""`rsseg export`: a model as a folder that can be handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def export(
    model: Annotated[Path, typer.Argument(help="Run folder or model file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder; NAME-model if none.")
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a folder with the model file, its settings, a model card and a STAC item.

    Prints the path of the folder.

    Example: rsseg export runs/lora-my_city -o my_city-model/
    """
    from rsseg_cli.commands.export import export as write

    found = write(model, output, overwrite=overwrite)
    if as_json:
        options.answer(found.to_json())
    else:
        typer.echo(found.folder)
