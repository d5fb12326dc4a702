"""`rsseg doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def doctor(
    data_root: options.DataRoot = None,
    run: Annotated[Path, typer.Option("--run", "-o", help="Where runs will be written.")] = Path(
        "runs"
    ),
    as_json: options.AsJson = False,
) -> None:
    """Look at torch, the GPU, GDAL, caches and disk, and say what is missing and the fix."""
    from rsseg_cli.doctor import examine

    findings = examine(data_root=data_root, runs=run)
    if as_json:
        options.answer([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "warn": "note", "fail": "FAIL"}[finding.state]
            typer.echo(f"{mark}  {finding.subject:<12} {finding.text}")
            if finding.fix:
                typer.echo(f"      {'':<12} try: {finding.fix}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)
