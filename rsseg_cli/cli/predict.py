"""`rsseg predict`: maps scenes with a trained model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.predict.options import PredictOptions

if TYPE_CHECKING:
    from rsseg_cli.predict.team import Team


@command
def predict(options: PredictOptions) -> None:
    """Map scenes with a trained model and print the path of each map.

    Exit code 3: some scenes failed, the others are written. Several processes share the work
    under `torchrun -m rsseg_cli predict`.

    Example: rsseg predict scene.tif --polygons scene.gpkg
    """
    from rsseg_cli.predict.team import open_team

    with open_team() as team:
        if options.dry_run:
            _dry_run(options, team)
        else:
            _predict(options, team)


def _dry_run(options: PredictOptions, team: Team) -> None:
    from rsseg_cli.commands.predict.predict import dry_run

    if not team.leads:
        return
    surveys = dry_run(options)
    if options.as_json:
        print_json({"scenes": [survey.to_json() for survey in surveys]})
        return
    for survey in surveys:
        survey.show()


def _predict(options: PredictOptions, team: Team) -> None:
    from rsseg_cli.commands.predict import predict as runs

    results = runs.predict(options, written=None if options.as_json else typer.echo, team=team)
    if not team.leads:
        return
    if options.as_json:
        print_json({"scenes": [asdict(result) for result in results]})
    failure = runs.failure(results)
    if failure is not None:
        raise failure
