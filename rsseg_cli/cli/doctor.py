"""`rsseg doctor`: checks the installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import OUTPUT, DataRootOption, JsonOption, option

MARKS = {"ok": "ok  ", "warn": "note", "fail": "FAIL"}


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(DataRootOption, JsonOption):
    """Options of `rsseg doctor`."""

    output: Path = option(Path("runs"), "Folder for runs.", OUTPUT, "-o")


@command
def doctor(options: DoctorOptions) -> None:
    """Check torch, the GPU, GDAL, caches and disk space, and print how to fix what is missing."""
    from rsseg_cli.doctor import check_machine

    findings = check_machine(data_root=options.data_root, runs=options.output)
    if options.as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{MARKS[finding.state]}  {finding.subject:<12} {finding.text}")
            if finding.fix:
                typer.echo(f"      {'':<12} try: {finding.fix}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)
