"""What is asked of a prediction, as the command line says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs, Polygons
from rsseg_cli.predict.products import Confidence
from rsseg_cli.predict.turns import Turns
from rsseg_cli.raster.area import Area
from rsseg_cli.raster.parts import refuse_options
from rsseg_cli.raster.scene import Scene
from rsseg_cli.run import scenes as names
from rsseg_cli.run.model import Fitted
from rsseg_cli.training.precision import Format
from rsseg_cli.words import counted

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class PredictOptions:
    """What is asked of a prediction, beside scenes and model.

    Attributes:
        output: A file for one scene, else a folder; where the call is made when None.
        tile: Side of a tile; that of the training when None.
        overlap: Share of a tile that overlaps its neighbour.
        batch: Tiles per pass.
        compile: Compile the model, where a scene is large enough.
        precision: Format of matrix products; that of the training when None.
        tta: Show each tile mirrored or turned, too.
        bands: File bands in the model's order, from 1, comma separated.
        nodata: Value of missing samples in place of the file's.
        aoi: Polygons outside of which nothing is mapped.
        bbox: "xmin,ymin,xmax,ymax" outside of which nothing is mapped.
        bbox_crs: What the box is in; the scene's CRS when None.
        probabilities: Make a map of one band per class.
        soft: Make a map of the share of the second class, of models of two classes.
        confidence: Make a map of how sure the model is.
        reject: Pixels whose highest probability is below this become nodata.
        polygons: A GeoPackage for one scene, else a folder.
        sieve: Patches of fewer pixels join a neighbour, in the polygons.
        simplify: By how much outlines of polygons may move, in units of the CRS.
        explain: Maps of its own work that the method shall make.
        block: The block at which it makes them, from 0; the last when None.
        quicklook: Draw a PNG beside each class map.
        format: `COG` or `GTiff`.
        options: Creation options `KEY=VALUE` of that format.
        threads: Readers.
        memory_mb: Bound on the memory of the process.
        overwrite: Replace what is there.
        resume: Continue an interrupted run, keep finished maps.
        shard: "I/N": map the I-th, from 0, of N disjoint shares of the scenes.
    """

    output: Path | None = None
    tile: int | None = None
    overlap: float = 0.25
    batch: int | None = None
    compile: bool = False
    precision: Format | None = None
    tta: Turns | None = None
    bands: str | None = None
    nodata: float | None = None
    aoi: Path | None = None
    bbox: str | None = None
    bbox_crs: str | None = None
    probabilities: bool = False
    soft: bool = True
    confidence: Confidence | None = None
    reject: float | None = None
    polygons: Path | None = None
    sieve: int = 0
    simplify: float = 0.0
    explain: Sequence[str] = ()
    block: int | None = None
    quicklook: bool = True
    format: str = "COG"
    options: Sequence[str] = ()
    threads: int = 2
    memory_mb: int | None = None
    overwrite: bool = False
    resume: bool = False
    shard: str | None = None

    def __post_init__(self) -> None:
        if self.aoi is not None and self.bbox is not None:
            raise RssegError("--aoi and --bbox are both given", fix="one of them")
        boxed, drawn = self.bbox is not None, self.polygons is not None
        for option, given, needed, there in (
            ("--bbox-crs", self.bbox_crs is not None, "--bbox", boxed),
            ("--block", self.block is not None, "--explain", bool(self.explain)),
            ("--sieve", self.sieve > 0, "--polygons", drawn),
            ("--simplify", self.simplify > 0, "--polygons", drawn),
        ):
            if given and not there:
                raise RssegError(
                    f"{option} does nothing without {needed}",
                    fix=f"{needed}, or leave {option} out",
                )

    def area(self, scene: Scene) -> Area | None:
        """Find what is wanted of a scene, None for all of it."""
        if self.aoi is not None:
            return Area.from_file(self.aoi, scene)
        if self.bbox is None:
            return None
        bounds = _numbers(self.bbox, float, "--bbox", "xmin,ymin,xmax,ymax")
        if len(bounds) != 4:
            raise RssegError(
                f"--bbox {self.bbox} has {counted(len(bounds), 'number')}",
                fix="xmin,ymin,xmax,ymax",
            )
        return Area.from_bounds((bounds[0], bounds[1], bounds[2], bounds[3]), scene, self.bbox_crs)

    def file_bands(self) -> list[int] | None:
        """Read the list of bands."""
        return None if self.bands is None else _numbers(self.bands, int, "--bands", "4,3,2,1")

    def creation(self) -> dict[str, str]:
        """Read the creation options."""
        pairs = [text.partition("=") for text in self.options]
        wrong = [key for key, equals, _ in pairs if not key or not equals]
        if wrong:
            raise RssegError(
                f"--co {wrong[0]} is no KEY=VALUE", where="--co", fix="e.g. --co COMPRESS=DEFLATE"
            )
        options = {key.upper(): value for key, _, value in pairs}
        refuse_options(self.format, options)
        return options

    def suffixes(self) -> list[str]:
        """List what the names of further maps end with."""
        wanted = {names.SHARES: self.probabilities, names.SURE: self.confidence is not None}
        explained = [f".{name}.tif" for name in self.explain]
        return [suffix for suffix, asked in wanted.items() if asked] + explained

    def _polygons(self, target: names.Target) -> Polygons | None:
        if target.polygons is None:
            return None
        return Polygons(target.polygons, self.sieve, self.simplify)

    def outputs(self, target: names.Target, fitted: Fitted, tags: dict[str, str]) -> Outputs:
        """Say what the engine is to make."""
        return Outputs(
            map=target.map,
            classes=fitted.classes,
            reject=self.reject,
            probabilities=target.beside(names.SHARES) if self.probabilities else None,
            soft=target.beside(names.SOFT) if self.soft and len(fitted.classes) == 2 else None,
            confidence=target.beside(names.SURE) if self.confidence else None,
            measure=self.confidence or "max",
            polygons=self._polygons(target),
            driver=self.format,
            options=self.creation(),
            overwrite=self.overwrite,
            tags=tags,
        )


def _numbers(text: str, kind: Callable[[str], N], where: str, example: str) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise RssegError(
            f"{where} {text} is no list of numbers", where=where, fix=f"e.g. {example}"
        ) from error
