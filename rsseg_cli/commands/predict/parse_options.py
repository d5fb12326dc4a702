"""Parses the options of `predict`: area, creation options and output specification."""

from __future__ import annotations

from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.paths import (
    CONFIDENCE_SUFFIX,
    PROBABILITY_SUFFIX,
    SOFT_SUFFIX,
    OutputPaths,
)
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs, Polygons
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.scene import Scene


def parse_area(options: PredictOptions, scene: Scene) -> Area | None:
    """Read the area to map from `--aoi` or `--bbox`; return None for the whole scene.

    Raises:
        RssegError: The file or the box cannot be read, or does not overlap the scene.
    """
    if options.aoi is not None:
        return Area.from_file(options.aoi, scene)
    if options.bbox is None:
        return None
    try:
        x_min, y_min, x_max, y_max = map(float, options.bbox.split(","))
    except ValueError as error:
        raise RssegError(
            f"--bbox {options.bbox} is not a list of four numbers",
            where="--bbox",
            fix="xmin,ymin,xmax,ymax",
        ) from error
    return Area.from_bounds((x_min, y_min, x_max, y_max), scene, options.bbox_crs)


def parse_creation_options(options: PredictOptions) -> dict[str, str]:
    """Parse the creation options of the raster format, with keys in upper case.

    Raises:
        RssegError: One is not KEY=VALUE.
    """
    pairs = [text.partition("=") for text in options.creation_options]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise RssegError(
                f"--co {key} is not KEY=VALUE", where="--co", fix="e.g. --co COMPRESS=DEFLATE"
            )
    return {key.upper(): value for key, _, value in pairs}


def scene_outputs(
    options: PredictOptions,
    paths: OutputPaths,
    fitted: LoadedModel,
    *,
    dependencies: dict[str, str],
    tags: dict[str, str],
) -> Outputs:
    """Build the output specification of one scene."""
    polygons = None
    if paths.polygons is not None:
        polygons = Polygons(paths.polygons, options.sieve, options.simplify)
    soft = options.soft and len(fitted.classes) == 2
    return Outputs(
        map=paths.map,
        classes=fitted.classes,
        reject=options.reject,
        probabilities=paths.with_suffix(PROBABILITY_SUFFIX) if options.probabilities else None,
        soft=paths.with_suffix(SOFT_SUFFIX) if soft else None,
        confidence=paths.with_suffix(CONFIDENCE_SUFFIX) if options.confidence else None,
        measure=options.confidence or "max",
        polygons=polygons,
        driver=options.format,
        options=parse_creation_options(options),
        overwrite=options.overwrite,
        dependencies=dependencies,
        tags=tags,
    )
