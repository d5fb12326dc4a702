"""`rsseg evaluate`: scores a map or a model against the ground truth."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.evaluate.options import EvaluateOptions

if TYPE_CHECKING:
    from rsseg_cli.commands.evaluate.experiment import Scored
    from rsseg_cli.report.report import Report


@command
def evaluate(options: EvaluateOptions) -> None:
    """Score a map against its ground truth, or a model on labelled data.

    Examples: rsseg evaluate scene.seg.tif truth.gpkg --field class

    rsseg evaluate --model runs/lora-loveda --on loveda:val:urban
    """
    from rsseg_cli import distributed

    with distributed.group(options.device):
        result = _score(options)
        if not distributed.is_main():
            return
        if options.report is not None:
            result.write(options.report)
        print_json(result.to_json()) if options.as_json else result.show()


def _score(options: EvaluateOptions) -> Report | Scored:
    from rsseg_cli.commands.evaluate import evaluate as runs
    from rsseg_cli.commands.evaluate.experiment import Chosen, score

    boundary_px = options.boundary or None
    if options.prediction is not None and options.truth is not None:
        return runs.rasters(
            options.prediction,
            options.truth,
            field=options.field,
            align=options.align,
            ignore=options.ignore,
            classes=options.classes,
            boundary_px=boundary_px,
            image=options.image,
            pictures=options.report is not None,
            soft=options.soft,
        )
    evaluate_model = partial(
        runs.model,
        data_root=options.data_root,
        weights=options.weights,
        overlap=options.overlap,
        boundary_px=boundary_px,
        device=options.device,
        quiet=options.quiet or options.as_json,
    )
    if options.experiment is None:
        return evaluate_model(options.model, options.on, class_map=options.class_map)
    chosen = Chosen.find(options.experiment)
    return score(chosen, evaluate_model, model=options.model, data_root=options.data_root)
