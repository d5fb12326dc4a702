"""`rsseg compare`: compares the scores of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import DATA, OUTPUT, Argument, JsonOption, Option


@dataclass(frozen=True, kw_only=True)
class CompareOptions(JsonOption):
    """Options of `rsseg compare`."""

    runs: Annotated[
        tuple[Path, ...], Argument("Run folders, or folders of `evaluate --report`.", DATA)
    ]
    report: Annotated[
        Path | None, Option("Folder for compare.html, .md, .csv and .json.", OUTPUT)
    ] = None


@command
def compare(options: CompareOptions) -> None:
    """Compare the scores of finished runs: mean and spread over seeds, differences to the first.

    Example: rsseg compare runs/lora-* runs/frozen-* --report compared/
    """
    from rsseg_cli.commands.compare import compare as compare_runs

    compared = compare_runs(options.runs)
    if options.report is not None:
        compared.write(options.report)
    print_json(compared.to_json()) if options.as_json else compared.show()
