"""`rsseg presets`: lists and prints presets."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from rsseg_cli.cli.command import Command, Group, command, print_json
from rsseg_cli.commands.options import JsonOption, argument

app = typer.Typer(cls=Group, help="List and print presets.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of `rsseg presets show`."""

    name: str = argument("Name of a preset, e.g. lora or loveda.")


@app.command("list", cls=Command)
@command
def list_(options: JsonOption) -> None:
    """List the presets of methods, datasets, experiments and class maps."""
    from rsseg_cli import presets

    rows = [
        {"kind": kind, "name": name, "title": presets.title(kind, name)}
        for kind in presets.KINDS
        for name in presets.names(kind)
    ]
    if options.as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "title"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["kind"], row["name"], row["title"])
    Console().print(table)


@app.command("show", cls=Command)
@command
def show(options: ShowOptions) -> None:
    """Print the YAML of a preset."""
    from rsseg_cli import presets
    from rsseg_cli.errors import unknown

    kinds = [kind for kind in presets.KINDS if options.name in presets.names(kind)]
    if not kinds:
        choices = [choice for kind in presets.KINDS for choice in presets.names(kind)]
        raise unknown("preset", options.name, choices)
    for kind in kinds:
        typer.echo(presets.find(kind, options.name).read_text(encoding="utf-8"), nl=False)
