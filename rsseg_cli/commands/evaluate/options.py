"""Options of `rsseg evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    MODEL,
    OUTPUT,
    ClassMapOption,
    DataRootOption,
    ExperimentOption,
    OverlapOption,
    OverwriteOption,
    ProgressOptions,
    WeightsOption,
    argument,
    option,
    require_alone,
    require_unused,
)
from rsseg_cli.errors import RssegError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(
    ClassMapOption,
    DataRootOption,
    OverlapOption,
    OverwriteOption,
    ProgressOptions,
    WeightsOption,
    ExperimentOption,
):
    """Options of `rsseg evaluate`: of a map, of a model on datasets, or of an experiment.

    Raises:
        RssegError: There is nothing to evaluate, or an option has no effect.
    """

    prediction: Path | None = argument(
        "Class map or probability map, e.g. scene.seg.tif.", None, metavar="MAP"
    )
    truth: Path | None = argument("Ground truth: a raster on the same grid, or polygons.", None)
    model: Path | None = option(
        None, "Run folder or model file, with --on.", MODEL, show_default="newest run"
    )
    on: tuple[str, ...] = option(
        (), "Dataset to evaluate the model on; repeatable.", MODEL, metavar="DATASET"
    )
    field: str | None = option(None, "Attribute of the polygons that holds the class.", DATA)
    classes: Path | None = option(None, "dataset.yaml or map that names the classes.", DATA)
    ignore: tuple[int, ...] = option(
        (), "Label id to ignore; repeatable. Pass 255 if it is not the object of a 0/255 mask.",
        DATA,
    )  # fmt: skip
    align: bool = option(False, "Resample the ground truth to the map's grid.", DATA)
    soft: bool | None = option(
        None, "Treat the map as probabilities of one class.", DATA, show_default="by data type"
    )
    report: Path | None = option(None, "Folder for report.json, .csv, .md and .html.", OUTPUT)
    image: Path | None = option(None, "The mapped scene, to show in the report.", OUTPUT)
    boundary: int = option(
        3, "Width of class boundaries in pixels; 0 skips their scores.", ADVANCED, min=0
    )

    def __post_init__(self) -> None:
        if self.report is None:
            require_unused({"--overwrite": self.overwrite}, "without --report")
        of_map = {
            "--field": self.field,
            "--align": self.align,
            "--ignore": self.ignore,
            "--classes": self.classes,
            "--soft": self.soft is not None,
            "--image": self.image,
        }
        if self.experiment is not None:
            require_unused(of_map, "when an experiment is evaluated")
            sets = {"MAP": self.prediction, "--on": self.on, "--class-map": self.class_map}
            require_alone(sets)
        elif self.on and self.prediction is None:
            require_unused(of_map, "when a model is evaluated")
        elif self.on or self.prediction is None or self.truth is None:
            raise RssegError(
                "there is nothing to compare",
                fix="rsseg evaluate MAP TRUTH, rsseg evaluate --model RUN --on DATASET, or "
                "rsseg evaluate --experiment NAME",
            )
        else:
            of_model = {
                "--model": self.model,
                "--weights": self.weights,
                "--class-map": self.class_map,
            }
            require_unused(of_model, "when a map is evaluated")
