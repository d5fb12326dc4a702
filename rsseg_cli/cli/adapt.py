"""`rsseg adapt`: adapts a model to scenes without labels."""

from __future__ import annotations

import typer

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.cli.training import train
from rsseg_cli.commands.adapt.options import AdaptOptions
from rsseg_cli.commands.options import setting_changes


@command
def adapt(options: AdaptOptions) -> None:
    """Adapt a model to scenes without labels and print the path of the model file.

    Examples: rsseg adapt --model runs/lora-my_city --tgt scenes/

    rsseg adapt --method lora --src my_city/ --tgt scenes/
    """
    from rsseg_cli.training.deadline import Deadline

    deadline = Deadline.parse(options.max_time)  # before slow imports, which count too
    from rsseg_cli.commands.adapt import remarks
    from rsseg_cli.commands.adapt import settings as adapt_config
    from rsseg_cli.commands.adapt.adapt import prepare_adapt

    config = adapt_config.resolve(
        model=options.model,
        method=options.method,
        file=options.config,
        sources=options.src,
        targets=options.tgt,
        backbone=options.backbone,
        head=options.head,
        pretrained=not options.no_pretrained,
        changes=[*_changes(options), *options.settings],
    )
    report = train(prepare_adapt, config, options, deadline)
    if report is None:
        return
    reason = remarks.stopped(report.result)
    if reason is not None:
        typer.echo(f"warning: {reason}; the best earlier model is kept", err=True)
    print_json(remarks.to_json(report)) if options.as_json else typer.echo(report.model)


def _changes(options: AdaptOptions) -> list[str]:
    """Return the settings that the options change."""
    changes = setting_changes(options)
    if options.bands is not None:
        changes.append(f"adapt.bands=[{options.bands}]")
    if options.nodata is not None:
        changes.append(f"adapt.nodata={options.nodata}")
    if options.weights is not None:
        changes.append(f"backbone.weights={options.weights.resolve()}")
    return changes
