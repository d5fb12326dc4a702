"""`rsseg data`: lists, checks and measures datasets."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from rsseg_cli.cli.command import Command, Group, command, print_json
from rsseg_cli.commands.options import (
    DATA,
    ClassMapOption,
    DataRootOption,
    JsonOption,
    argument,
    complete_source,
    option,
)

app = typer.Typer(cls=Group, help="List, check and measure datasets.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(DataRootOption):
    """One dataset."""

    name: str = argument(
        "Folder, dataset.yaml or preset; `stats` also takes :split[:domain].",
        metavar="DATASET",
        autocompletion=complete_source,
    )


@dataclass(frozen=True, kw_only=True)
class CheckOptions(DatasetOptions, JsonOption):
    """Options of `rsseg data check`."""

    sample: int = option(24, "Number of images to open.", DATA, min=1)


@dataclass(frozen=True, kw_only=True)
class StatsOptions(DatasetOptions, ClassMapOption, JsonOption):
    """Options of `rsseg data stats`."""

    every: bool = option(False, "Read every pixel, not a sample.", DATA, "--all")


@app.command("list", cls=Command)
@command
def list_(options: JsonOption) -> None:
    """List the dataset presets with size, licence and web page."""
    from rsseg_cli.commands.dataset import list_presets, show_presets

    rows = list_presets()
    print_json(rows) if options.as_json else show_presets(rows)


@app.command("describe", cls=Command)
@command
def describe_(options: DatasetOptions) -> None:
    """Print the dataset.yaml of a preset, or the one inferred from a folder.

    Example: rsseg data describe my_city/ > my_city.yaml
    """
    from rsseg_cli.commands.dataset import describe

    typer.echo(describe(options.name, data_root=options.data_root), nl=False)


@app.command("check", cls=Command)
@command
def check(options: CheckOptions) -> None:
    """Compare the files of a dataset with its description.

    Checks the pairs of each split and domain, bands, data types, sizes and label values, and
    prints how to fix differences. The exit code is 1 if something differs.

    Example: rsseg data check loveda --data-root /data
    """
    from rsseg_cli.commands.dataset import check_dataset, show_check
    from rsseg_cli.errors import FAILED

    result = check_dataset(options.name, data_root=options.data_root, sample=options.sample)
    print_json(result.to_json()) if options.as_json else show_check(result, options.name)
    if not result.fits:
        raise typer.Exit(FAILED)


@app.command("stats", cls=Command)
@command
def stats(options: StatsOptions) -> None:
    """Compute mean and standard deviation of the bands, and the fraction of each class.

    Nodata pixels are left out.

    Example: rsseg data stats my_city/
    """
    from rsseg_cli.commands.dataset import measure_source

    statistics = measure_source(
        options.name,
        data_root=options.data_root,
        every=options.every,
        class_map=options.class_map,
    )
    print_json(statistics) if options.as_json else statistics.show()
