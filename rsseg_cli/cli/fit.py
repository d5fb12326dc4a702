"""`rsseg fit`: trains a model on labelled images."""

from __future__ import annotations

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.cli.training import train
from rsseg_cli.commands.fit.options import FitOptions


@command
def fit(options: FitOptions) -> None:
    """Train a model on labelled images and print the path of the model file.

    Example: rsseg fit --method lora --src my_city/
    """
    from rsseg_cli.training.deadline import Deadline

    deadline = Deadline.parse(options.max_time)  # before slow imports, which count too
    from rsseg_cli.commands.fit.fit import prepare_fit
    from rsseg_cli.config import resolve

    changes = options.changes()
    if options.experiment is not None:
        from rsseg_cli.commands.evaluate.experiment import ExperimentRow

        row = ExperimentRow.find(options.experiment)
        replaced = {"backbone": options.backbone, "head": options.head}
        changes = [*row.changes(skip=replaced), *changes]
        options = row.options(options)
        for remark in row.remarks():
            typer.echo(f"note: {remark}", err=True)
    config = resolve(
        method=options.method,
        file=options.config,
        sources=options.src,
        backbone=options.backbone,
        head=options.head,
        weights=options.weights,
        pretrained=not options.no_pretrained,
        changes=changes,
    )
    result = train(prepare_fit, config, options, deadline)
    if result is not None:
        print_json(result.to_json()) if options.as_json else typer.echo(result.model)
