"""`rsseg predict`: maps scenes with a trained model."""

from __future__ import annotations

from dataclasses import asdict

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.predict.options import PredictOptions


@command
def predict(options: PredictOptions) -> None:
    """Map scenes with a trained model and print the path of each map.

    Exit code 3: some scenes failed, the others are written. Several processes share the work
    under `torchrun -m rsseg_cli predict`.

    Example: rsseg predict scene.tif --polygons scene.gpkg
    """
    from rsseg_cli import distributed

    with distributed.group(options.device):
        if options.dry_run:
            _dry_run(options)
        else:
            _predict(options)


def _dry_run(options: PredictOptions) -> None:
    from rsseg_cli import distributed
    from rsseg_cli.commands.predict.predict import dry_run

    estimates = dry_run(options)
    if not distributed.is_main():
        return
    if options.as_json:
        print_json({"scenes": [asdict(estimate) for estimate in estimates]})
        return
    for estimate in estimates:
        estimate.print()


def _predict(options: PredictOptions) -> None:
    from rsseg_cli import distributed
    from rsseg_cli.commands.predict import predict as runs

    results = runs.predict(options, written=None if options.as_json else typer.echo)
    if not distributed.is_main():
        return
    if options.as_json:
        print_json({"scenes": [asdict(result) for result in results]})
    failure = runs.failure(results)
    if failure is not None:
        raise failure
