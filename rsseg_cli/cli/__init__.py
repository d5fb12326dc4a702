"""The command line: one file per command, which calls `rsseg_cli.commands` and prints the result.

torch, timm and rasterio are imported inside commands only: `--help` and completion stay instant.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TextIO

import typer

from rsseg_cli import __version__
from rsseg_cli.cli import (
    adapt,
    bench,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    fit,
    predict,
    presets,
    preview,
)
from rsseg_cli.cli.command import Command, Group
from rsseg_cli.errors import RssegError, RssegWarning

DEBUG = "RSSEG_DEBUG"
"""Environment variable that shows the warnings of libraries."""

app = typer.Typer(
    name="rsseg",
    cls=Group,
    help="Fine-tune vision foundation models for semantic segmentation of satellite and aerial "
    "imagery, and map whole scenes with them.",
    epilog=f"{DEBUG}=1 shows the warnings of libraries too.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    demo.demo,
    fit.fit,
    adapt.adapt,
    predict.predict,
    evaluate.evaluate,
    compare.compare,
    preview.preview,
    export.export,
    doctor.doctor,
):
    app.command(cls=Command)(_command)
app.add_typer(data.app, name="data")
app.add_typer(presets.app, name="presets")
app.add_typer(bench.app, name="bench")


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"rsseg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    pass


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of rsseg; with `RSSEG_DEBUG` set also those of libraries."""
    if issubclass(category, RssegWarning):
        typer.echo(f"warning: {message}", err=True)
    elif os.environ.get(DEBUG):
        typer.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True)


def main() -> None:
    """Run the command line; print an `RssegError` without a traceback and exit with its code."""
    warnings.simplefilter("once", RssegWarning)
    warnings.showwarning = _warn
    try:
        app(prog_name="rsseg")  # also under `python -m rsseg_cli`
    except RssegError as error:
        typer.echo(str(error), err=True)
        sys.exit(error.exit_code)
