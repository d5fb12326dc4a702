"""Evaluation of a map against its ground truth, of a model on labelled data, or an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsseg_cli import distributed
from rsseg_cli.commands.evaluate.experiment import (
    ExperimentReport,
    evaluate_experiment,
    existing_experiment_files,
)
from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.evaluate.options import EvaluateOptions
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.errors import OutputExistsError
from rsseg_cli.evaluate.rasters import evaluate_rasters
from rsseg_cli.evaluate.reference import read_class_list
from rsseg_cli.report.map_figure import quicklook
from rsseg_cli.report.report import Report, existing_files


def evaluate(options: EvaluateOptions) -> Report | ExperimentReport:
    """Evaluate a map, a model or an experiment.

    Several processes share the scenes of a model's datasets; only rank 0 returns all scores.

    Raises:
        OutputExistsError: The folder holds a report and `overwrite` is off.
        RssegError: The inputs do not fit together.
    """
    with distributed.raise_together():
        if distributed.is_main() and options.report is not None and not options.overwrite:
            _refuse_replacing(options.report, options.experiment)
    if options.experiment is not None:
        return evaluate_experiment(options, options.experiment)
    return evaluate_model(options) if options.on else evaluate_map(options)


def _refuse_replacing(folder: Path, experiment: str | None) -> None:
    """Raise an OutputExistsError if the folder holds files of a report."""
    if experiment is None:
        files = existing_files(folder)
    else:
        files = existing_experiment_files(folder, experiment)
    if files:
        raise OutputExistsError(
            "the report already exists", where=str(files[0]), fix="--overwrite, or another --report"
        )


def evaluate_map(options: EvaluateOptions) -> Report:
    """Evaluate a map against its ground truth; see `evaluate.rasters.evaluate_rasters`."""
    prediction, truth, image = options.prediction, options.truth, options.image
    assert prediction is not None
    assert truth is not None
    evaluation = evaluate_rasters(
        prediction,
        truth,
        None if options.classes is None else read_class_list(options.classes),
        align=options.align,
        attribute=options.field,
        ignore=options.ignore,
        boundary_px=options.boundary or None,
        image=image,
        soft=options.soft,
    )
    pictures: dict[str, Any] = {}
    if (options.report is not None or image is not None) and evaluation.saliency is None:
        pictures["Map against truth"] = quicklook(
            prediction, evaluation.classes, image=image, truth=truth, code=evaluation.code
        )
    return evaluation.report(
        str(prediction), subtitle=f"against {truth}", about=versions(), pictures=pictures
    )
