"""Turns the options of `predict` into an area, creation options and outputs."""

from __future__ import annotations

from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.commands.predict import paths as names
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs, Polygons
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.creation_options import check_creation_options
from rsseg_cli.raster.scene import Scene


def read_area(options: PredictOptions, scene: Scene) -> Area | None:
    """Read the area to map from `--aoi` or `--bbox`; None for the whole scene.

    Raises:
        RssegError: The file or the box cannot be read, or does not touch the scene.
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


def read_creation_options(options: PredictOptions) -> dict[str, str]:
    """Read the creation options of the raster format, keys in upper case.

    Raises:
        RssegError: One is not KEY=VALUE, or GDAL does not know it.
    """
    pairs = [text.partition("=") for text in options.creation_options]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise RssegError(
                f"--co {key} is not KEY=VALUE", where="--co", fix="e.g. --co COMPRESS=DEFLATE"
            )
    creation_options = {key.upper(): value for key, _, value in pairs}
    check_creation_options(options.format, creation_options)
    return creation_options


def map_suffixes(options: PredictOptions) -> list[str]:
    """List the suffixes of the maps that are written beside the class map."""
    suffixes = [f".{name}.tif" for name in options.explain]
    if options.probabilities:
        suffixes.append(names.SHARES)
    if options.confidence is not None:
        suffixes.append(names.SURE)
    return suffixes


def scene_outputs(
    options: PredictOptions, target: names.Target, fitted: LoadedModel, tags: dict[str, str]
) -> Outputs:
    """Return what the engine is to write for one scene.

    Args:
        options: The options.
        target: Paths of the class map and the polygons.
        fitted: The model.
        tags: Tags of the written files.
    """
    polygons = None
    if target.polygons is not None:
        polygons = Polygons(target.polygons, options.sieve, options.simplify)
    soft = options.soft and len(fitted.classes) == 2
    return Outputs(
        map=target.map,
        classes=fitted.classes,
        reject=options.reject,
        probabilities=target.beside(names.SHARES) if options.probabilities else None,
        soft=target.beside(names.SOFT) if soft else None,
        confidence=target.beside(names.SURE) if options.confidence else None,
        measure=options.confidence or "max",
        polygons=polygons,
        driver=options.format,
        options=read_creation_options(options),
        overwrite=options.overwrite,
        tags=tags,
    )
