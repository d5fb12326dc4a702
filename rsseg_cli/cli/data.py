"""`rsseg data`: which datasets are known, whether one is whole, what its numbers are."""

from __future__ import annotations

from typing import Annotated

import typer

from rsseg_cli.cli import options

app = typer.Typer(help="List, check and measure datasets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A dataset preset, a folder, or a dataset.yaml.")]


@app.command("list")
def list_(as_json: options.AsJson = False) -> None:
    """List the known datasets with size, licence and page."""
    from rsseg_cli.commands import dataset as data

    rows = data.list_presets()
    options.answer(rows) if as_json else data.show_presets(rows)


@app.command("describe")
def describe(name: Name, data_root: options.DataRoot = None) -> None:
    """Print how a dataset is read: the dataset.yaml of a preset, or of a folder as it looks.

    Example: rsseg data describe my_city/ > my_city.yaml
    """
    from rsseg_cli.commands import dataset as data

    typer.echo(data.describe(name, data_root=data_root), nl=False)


@app.command("check")
def check(
    name: Name,
    data_root: options.DataRoot = None,
    sample: Annotated[int, typer.Option(help="Images and labels to open.", min=1)] = 24,
    as_json: options.AsJson = False,
) -> None:
    """Compare what is on disk with what is known about a dataset.

    Counts pairs per split and domain, looks at bands, types, sizes and label values, and says
    what to change where they do not fit. The exit code is 1 where something does not.

    Example: rsseg data check loveda --data-root /data
    """
    from rsseg_cli.commands import dataset as data
    from rsseg_cli.errors import FAILED

    found = data.check_dataset(name, data_root=data_root, sample=sample)
    options.answer(found.document()) if as_json else data.show_check(found, name)
    if not found.fits:
        raise typer.Exit(FAILED)


@app.command("stats")
def stats(
    name: Annotated[
        str, typer.Argument(help="A dataset, perhaps with `:split` and `:split:domain`.")
    ],
    data_root: options.DataRoot = None,
    every: Annotated[
        bool, typer.Option("--all", help="Read every pixel of the images, not a sample.")
    ] = False,
    class_map: options.ClassMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure mean and deviation of the bands and the shares of the classes.

    Missing pixels do not count. Memory does not grow with the dataset.

    Example: rsseg data stats my_city/
    """
    from rsseg_cli.commands import dataset as data

    found = data.measure_source(name, data_root=data_root, every=every, class_map=class_map)
    options.answer(found.document()) if as_json else found.show()
