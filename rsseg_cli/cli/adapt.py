"""`rsseg adapt`: adapts a model to scenes without labels."""

from __future__ import annotations

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.cli.training import train
from rsseg_cli.commands.adapt.options import AdaptOptions


@command
def adapt(options: AdaptOptions) -> None:
    """Adapt a model to scenes without labels and print the path of the model file.

    Examples: rsseg adapt --model runs/lora-my_city --tgt scenes/

    rsseg adapt --method lora --src my_city/ --tgt scenes/
    """
    from rsseg_cli.training.deadline import Deadline

    deadline = Deadline.parse(options.max_time)  # before slow imports, which count too
    from rsseg_cli.commands.adapt.adapt import prepare_adapt
    from rsseg_cli.commands.adapt.remarks import stop_reason, to_json
    from rsseg_cli.commands.adapt.settings import resolve

    report = train(prepare_adapt, resolve(options), options, deadline)
    if report is None:
        return
    reason = stop_reason(report.result)
    if reason is not None:
        typer.echo(f"warning: {reason}; the best earlier model is kept", err=True)
    print_json(to_json(report)) if options.as_json else typer.echo(report.model)
