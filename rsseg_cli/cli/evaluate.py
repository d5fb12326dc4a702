"""`rsseg evaluate`."""

from __future__ import annotations

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.evaluate.options import EvaluateOptions


@command
def evaluate(options: EvaluateOptions) -> None:
    """Score a map against its ground truth, or a model on labelled data.

    Examples: rsseg evaluate scene.seg.tif truth.gpkg --field class

    rsseg evaluate --model runs/lora-loveda --on loveda:val:urban
    """
    from rsseg_cli import distributed
    from rsseg_cli.commands.evaluate.evaluate import evaluate as evaluate_options

    with distributed.group(options.device):
        result = evaluate_options(options)
        if not distributed.is_main():
            return
        if options.report is not None:
            result.write(options.report)
        print_json(result.to_json()) if options.as_json else result.show()
