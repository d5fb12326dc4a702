"""`rsseg export`: packs a model for others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import OUTPUT, JsonOption, OverwriteOption, argument, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions(OverwriteOption, JsonOption):
    """Options of `rsseg export`."""

    model: Path = argument("Run folder or model file.")
    output: Path | None = option(None, "Folder to write.", OUTPUT, "-o", show_default="NAME-model")


@command
def export(options: ExportOptions) -> None:
    """Write a folder with the model file, its settings, a model card and a STAC item.

    Prints the path of the folder.

    Example: rsseg export runs/lora-my_city -o my_city-model/
    """
    from rsseg_cli.commands.export import export as export_model

    exported = export_model(options.model, options.output, overwrite=options.overwrite)
    print_json(exported) if options.as_json else typer.echo(exported.folder)
