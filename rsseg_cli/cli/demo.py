"""`rsseg demo`: the whole job on a sample made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsseg_cli.cli import options


def demo(
    folder: Annotated[
        Path, typer.Option("--output", "-o", help="Where the sample, the run and the map go.")
    ] = Path("rsseg-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the training.")] = 42,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a sample, fit a model, map a scene it never saw, and score the map.

    Offline, on a CPU, in under a minute on two free cores. Two regions differ in season, haze
    and texture: the model learns in the north and maps the south.
    """
    from rsseg_cli.demo import guide

    result = guide.run(
        folder, seed=seed, device=device, overwrite=overwrite, quiet=quiet or as_json
    )
    if as_json:
        options.answer(result.document())
    else:
        result.show()
