"""`rsseg compare`: runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or folders that `evaluate --report` wrote."),
    ],
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder for compare.html, .md, .csv and .json.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare finished runs: seeds grouped, means, spreads, differences to the first.

    Example: rsseg compare runs/lora-* runs/frozen-* --report compared/
    """
    from rsseg_cli.commands.compare import compare as beside

    found = beside(runs)
    if report is not None:
        found.write(report)
    if as_json:
        options.answer(found.to_json())
    else:
        found.show()
