"""`rsseg presets`: what can be named."""

from __future__ import annotations

from typing import Annotated

import typer

from rsseg_cli.cli import options

app = typer.Typer(help="List and show the presets.", no_args_is_help=True)


@app.command("list")
def list_(as_json: options.AsJson = False) -> None:
    """List methods, datasets and experiments."""
    from rsseg_cli import presets

    rows = [
        {"kind": kind, "name": name, "title": presets.title(kind, name)}
        for kind in presets.KINDS
        for name in presets.names(kind)
    ]
    if as_json:
        options.answer(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("kind", "name", "title"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["kind"], row["name"], row["title"])
    Console().print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a preset, e.g. lora or loveda.")],
) -> None:
    """Print a preset as it is."""
    from rsseg_cli import presets
    from rsseg_cli.errors import unknown

    found = [presets.find(kind, name) for kind in presets.KINDS if name in presets.names(kind)]
    if not found:
        choices = [choice for kind in presets.KINDS for choice in presets.names(kind)]
        raise unknown("preset", name, choices)
    for path in found:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
