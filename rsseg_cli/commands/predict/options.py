"""Options of `rsseg predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.choices import TTA, Confidence, RasterFormat
from rsseg_cli.commands.options import (
    ADVANCED,
    DATA,
    OUTPUT,
    RUNNING,
    BandsOptions,
    FittedModelOption,
    OverwriteOption,
    PrecisionOption,
    ProgressOptions,
    TilingOptions,
    WeightsOption,
    argument,
    option,
    require_unused,
)
from rsseg_cli.errors import RssegError


@dataclass(frozen=True, kw_only=True)
class PredictOptions(
    FittedModelOption,
    BandsOptions,
    TilingOptions,
    OverwriteOption,
    ProgressOptions,
    WeightsOption,
    PrecisionOption,
):
    """Options of `rsseg predict`; by default it writes a class map of every scene.

    Raises:
        RssegError: An option was given that has no effect without another.
    """

    scenes: tuple[str, ...] = argument("Files, folders or patterns; - reads a list from stdin.")
    aoi: Path | None = option(None, "Vector file; only the area inside is mapped.", DATA)
    bbox: str | None = option(
        None, "Box; only the area inside is mapped.", DATA, metavar="XMIN,YMIN,XMAX,YMAX"
    )
    bbox_crs: str | None = option(
        None, "CRS of --bbox.", DATA, metavar="CRS", show_default="scene's"
    )
    # Texts: a path drops the slash that marks a folder.
    output: str | None = option(
        None, "File for one scene, or folder.", OUTPUT, "-o",
        metavar="PATH", show_default="SCENE.seg.tif",
    )  # fmt: skip
    probabilities: bool = option(False, "Also SCENE.prob.tif, class probabilities.", OUTPUT)
    confidence: Confidence | None = option(None, "Also SCENE.conf.tif, from 0 to 1.", OUTPUT)
    soft: bool = option(
        True, "Of two classes, also SCENE.soft.tif: probability of class 2.", OUTPUT
    )
    quicklook: bool = option(True, "Also a PNG of each map.", OUTPUT)
    reject: float | None = option(
        None, "Write nodata where the class probability is lower.", OUTPUT, min=0.0, max=1.0
    )
    polygons: str | None = option(
        None, "Also polygons: .gpkg file, or folder.", OUTPUT, metavar="PATH"
    )
    sieve: int = option(
        0, "Merge polygons of fewer pixels into a neighbour.", OUTPUT, min=0, max=10_000
    )
    simplify: float = option(0.0, "Tolerance of outlines in map units.", OUTPUT, min=0.0)
    resume: bool = option(False, "Continue an interrupted run; keep finished maps.", RUNNING)
    dry_run: bool = option(False, "Estimate time, memory and disk; check the scenes.", RUNNING)
    shard: str | None = option(
        None, "Map only part I (from 0) of N parts of the scenes.", RUNNING, metavar="I/N"
    )
    tta: TTA | None = option(None, "Test-time augmentation: average 4 or 8 views.", RUNNING)
    explain: tuple[str, ...] = option(
        (), "Also SCENE.NAME.tif, e.g. routing; repeatable.", ADVANCED
    )
    block: int | None = option(
        None, "Backbone block for --explain, from 0.", ADVANCED, show_default="last"
    )
    format: RasterFormat = option("COG", "Format of maps.", ADVANCED)
    creation_options: tuple[str, ...] = option(
        (), "GDAL creation option; repeatable.", ADVANCED, "--co", metavar="KEY=VALUE"
    )
    compile: bool = option(False, "Compile the model for large scenes.", ADVANCED)
    memory_mb: int | None = option(None, "Limit of the process's memory, in MB.", ADVANCED, min=64)
    threads: int = option(2, "Threads that read the scene.", ADVANCED, min=1)

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
