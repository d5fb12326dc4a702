"""Options of `rsseg predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rsseg_cli.choices import Confidence, RasterFormat, Turns
from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    OUTPUT,
    RUNNING,
    Argument,
    BandsOptions,
    DeviceOption,
    FittedModelOption,
    JsonOption,
    Option,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    TilingOptions,
    WeightsOption,
    require_unused,
)
from rsseg_cli.errors import RssegError


@dataclass(frozen=True, kw_only=True)
class PredictOptions(
    FittedModelOption,
    BandsOptions,
    TilingOptions,
    OverwriteOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    WeightsOption,
    PrecisionOption,
):
    """Options of `rsseg predict`; by default it writes a class map of every scene.

    Raises:
        RssegError: An option was given that has no effect without another.
    """

    scenes: Annotated[
        tuple[str, ...], Argument("Files, folders or patterns; - reads a list from stdin.", DATA)
    ]
    aoi: Annotated[Path | None, Option("Vector file; only the area inside is mapped.", DATA)] = None
    bbox: Annotated[
        str | None,
        Option("Box; only the area inside is mapped.", DATA, metavar="XMIN,YMIN,XMAX,YMAX"),
    ] = None
    bbox_crs: Annotated[
        str | None, Option("CRS of --bbox.", DATA, metavar="CRS", default="scene's")
    ] = None
    output: Annotated[
        Path | None,
        Option("File for one scene, or folder.", OUTPUT, short="-o", default="SCENE.seg.tif"),
    ] = None
    probabilities: Annotated[bool, Option("Also SCENE.prob.tif, class probabilities.", OUTPUT)] = (
        False
    )
    confidence: Annotated[
        Confidence | None, Option("Also SCENE.conf.tif, from 0 to 1.", OUTPUT)
    ] = None
    soft: Annotated[
        bool,
        Option("Of two classes, also SCENE.soft.tif: probability of class 2.", OUTPUT),
    ] = True
    quicklook: Annotated[bool, Option("Also a PNG of each map.", OUTPUT)] = True
    reject: Annotated[
        float | None,
        Option(
            "Write nodata where the class probability is lower.", OUTPUT, minimum=0.0, maximum=1.0
        ),
    ] = None
    polygons: Annotated[Path | None, Option("Also polygons: .gpkg file, or folder.", OUTPUT)] = None
    sieve: Annotated[
        int,
        Option(
            "Merge polygons of fewer pixels into a neighbour.", OUTPUT, minimum=0, maximum=10_000
        ),
    ] = 0
    simplify: Annotated[
        float, Option("Tolerance of outlines in map units.", OUTPUT, minimum=0.0)
    ] = 0.0
    resume: Annotated[bool, Option("Continue an interrupted run; keep finished maps.", RUNNING)] = (
        False
    )
    dry_run: Annotated[
        bool, Option("Estimate time, memory and disk; check the scenes.", RUNNING)
    ] = False
    tta: Annotated[
        Turns | None, Option("Test-time augmentation: average 4 or 8 views.", RUNNING)
    ] = None
    explain: Annotated[
        tuple[str, ...],
        Option("Also SCENE.NAME.tif, e.g. routing; repeatable.", ADVANCED),
    ] = ()
    block: Annotated[
        int | None,
        Option("Backbone block for --explain, from 0.", ADVANCED, default="last"),
    ] = None
    format: Annotated[RasterFormat, Option("Format of maps.", ADVANCED)] = "COG"
    creation_options: Annotated[
        tuple[str, ...],
        Option("GDAL creation option; repeatable.", ADVANCED, "--co", metavar="KEY=VALUE"),
    ] = ()
    compile: Annotated[bool, Option("Compile the model for large scenes.", ADVANCED)] = False
    memory_mb: Annotated[
        int | None, Option("Limit of the process's memory, in MB.", ADVANCED, minimum=64)
    ] = None
    threads: Annotated[int, Option("Threads that read the scene.", ADVANCED, minimum=1)] = 2

    def __post_init__(self) -> None:
        if self.aoi is not None and self.bbox is not None:
            raise RssegError("--aoi and --bbox exclude each other", fix="one of them")
        if self.bbox is None:
            require_unused({"--bbox-crs": self.bbox_crs}, "without --bbox")
        if not self.explain:
            require_unused({"--block": self.block is not None}, "without --explain")
        if self.polygons is None:
            polygons_only = {"--sieve": self.sieve, "--simplify": self.simplify}
            require_unused(polygons_only, "without --polygons")
