"""`rsseg evaluate`: a map against its ground truth, or a model on labelled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rsseg_cli.commands.evaluate.experiment import Chosen, ExperimentReport, require_alone, score
from rsseg_cli.commands.evaluate.model_evaluation import evaluate_model
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate.rasters import BOUNDARY_PX, evaluate_rasters
from rsseg_cli.evaluate.truth import read_class_list
from rsseg_cli.report.pictures import quicklook
from rsseg_cli.report.report import Report


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `rsseg evaluate`: a map and its ground truth, a model on data, or an experiment.

    Attributes:
        prediction: The map.
        truth: Its ground truth: a raster, or polygons.
        model: Run folder or model file; the newest finished run when None.
        on: `DATASET[:split[:domain]]` to evaluate the model on.
        experiment: A paper's experiment, `paper/setting[:row]`.
        class_map: Map between the classes of the model and those of the datasets.
        data_root: Folder of the dataset presets.
        field: Attribute of polygons that holds the class.
        align: Resample the ground truth to the map's grid.
        ignore: Label ids to ignore.
        classes: A dataset.yaml, or another map, that names the classes.
        soft: Treat the map as probabilities of one class; None: detected.
        boundary_px: Width of the outlines that are compared; None leaves them out.
        image: The scene that was mapped, for the report.
        pictures: Draw map, ground truth and errors.
        weights: Weights file of the backbone, if it has moved.
        overlap: Overlap of neighbouring tiles as a fraction of a tile, 0..0.5.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress.
    """

    prediction: Path | None = None
    truth: Path | None = None
    model: Path | None = None
    on: Sequence[str] = ()
    experiment: str | None = None
    class_map: str | None = None
    data_root: Path | None = None
    field: str | None = None
    align: bool = False
    ignore: Sequence[int] = ()
    classes: Path | None = None
    soft: bool | None = None
    boundary_px: int | None = BOUNDARY_PX
    image: Path | None = None
    pictures: bool = False
    weights: Path | None = None
    overlap: float = 0.25
    device: str = "auto"
    quiet: bool = False


def evaluate(options: EvaluateOptions) -> Report | ExperimentReport:
    """Evaluate a map, a model or an experiment.

    Several processes share the scenes of a model's datasets; the result is the first one's.

    Raises:
        RssegError: The options do not go together, or the inputs do not fit.
    """
    _check(options)
    on_data = partial(
        evaluate_model,
        data_root=options.data_root,
        weights=options.weights,
        overlap=options.overlap,
        boundary_px=options.boundary_px,
        device=options.device,
        quiet=options.quiet,
    )
    if options.experiment is not None:
        chosen = Chosen.find(options.experiment)
        return score(chosen, on_data, model=options.model, data_root=options.data_root)
    if options.on:
        return on_data(options.model, options.on, class_map=options.class_map)
    return evaluate_map(options)


def evaluate_map(options: EvaluateOptions) -> Report:
    """Score one map against its ground truth; see `evaluate.rasters.evaluate_rasters`."""
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
        boundary_px=options.boundary_px,
        image=image,
        soft=options.soft,
    )
    pictures: dict[str, Any] = {}
    if (options.pictures or image is not None) and evaluation.saliency is None:
        pictures["Map against truth"] = quicklook(
            prediction, evaluation.classes, image=image, truth=truth, code=evaluation.code
        )
    return evaluation.report(
        str(prediction), subtitle=f"against {truth}", about=versions(), pictures=pictures
    )


def _check(options: EvaluateOptions) -> None:
    """Raise an error for options that do not go together."""
    of_maps = {
        "--field": options.field,
        "--align": options.align,
        "--ignore": options.ignore,
        "--classes": options.classes,
        "--soft": options.soft is not None,
        "--image": options.image,
    }
    if options.experiment is not None:
        _require_unused("a model", of_maps)
        require_alone(
            {"a map": options.prediction, "--on": options.on, "--class-map": options.class_map}
        )
    elif options.on:
        _require_unused("a model", of_maps)
    elif options.prediction is not None:
        _require_unused("a map", {"--model": options.model, "--weights": options.weights})
    if options.experiment is not None or (options.on and options.prediction is None):
        return
    if options.class_map is not None:
        raise RssegError(
            "--class-map joins the classes of a model and a dataset",
            where="--class-map",
            fix="rsseg evaluate --model RUN --on DATASET --class-map NAME",
        )
    if options.on or options.prediction is None or options.truth is None:
        raise RssegError(
            "there is nothing to compare",
            fix="rsseg evaluate MAP TRUTH, rsseg evaluate --model RUN --on DATASET, or "
            "rsseg evaluate --experiment NAME",
        )


def _require_unused(evaluated: str, options: Mapping[str, object]) -> None:
    """Raise an error for options without effect on what is evaluated."""
    used = [name for name, value in options.items() if value]
    if used:
        raise RssegError(
            f"{used[0]} does nothing where {evaluated} is evaluated",
            fix=f"leave {' and '.join(used)} out",
        )
