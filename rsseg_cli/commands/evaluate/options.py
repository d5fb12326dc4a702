"""Options of `rsseg evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    MODEL,
    OUTPUT,
    Argument,
    ClassMapOption,
    DataRootOption,
    DeviceOption,
    ExperimentOption,
    JsonOption,
    Option,
    OverlapOption,
    QuietOption,
    WeightsOption,
    require_alone,
    require_unused,
)
from rsseg_cli.errors import RssegError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(
    ClassMapOption,
    DataRootOption,
    OverlapOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    WeightsOption,
    ExperimentOption,
):
    """Options of `rsseg evaluate`: of a map, of a model on datasets, or of an experiment.

    Raises:
        RssegError: Nothing is to be evaluated, or an option has no effect on what is.
    """

    prediction: Annotated[
        Path | None,
        Argument("Class map or probability map, e.g. scene.seg.tif.", DATA, metavar="MAP"),
    ] = None
    truth: Annotated[
        Path | None,
        Argument("Ground truth: a raster on the same grid, or polygons.", DATA),
    ] = None
    model: Annotated[
        Path | None, Option("Run folder or model file, with --on.", MODEL, default="newest run")
    ] = None
    on: Annotated[
        tuple[str, ...],
        Option("Dataset to evaluate the model on; repeatable.", MODEL, metavar="DATASET"),
    ] = ()
    field: Annotated[
        str | None, Option("Attribute of the polygons that holds the class.", DATA)
    ] = None
    classes: Annotated[Path | None, Option("dataset.yaml or map that names the classes.", DATA)] = (
        None
    )
    ignore: Annotated[
        tuple[int, ...],
        Option(
            "Label id to ignore; repeatable. Pass 255 if it is not the object of a 0/255 mask.",
            DATA,
        ),
    ] = ()
    align: Annotated[bool, Option("Resample the ground truth to the map's grid.", DATA)] = False
    soft: Annotated[
        bool | None,
        Option("Treat the map as probabilities of one class.", DATA, default="by data type"),
    ] = None
    report: Annotated[
        Path | None, Option("Folder for report.json, .csv, .md and .html.", OUTPUT)
    ] = None
    image: Annotated[Path | None, Option("The mapped scene, to show in the report.", OUTPUT)] = None
    boundary: Annotated[
        int,
        Option("Width of class boundaries in pixels; 0 skips their scores.", ADVANCED, minimum=0),
    ] = 3

    def __post_init__(self) -> None:
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
