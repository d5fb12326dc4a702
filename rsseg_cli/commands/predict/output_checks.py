"""Checks of the output files of a prediction, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rsseg_cli import distributed
from rsseg_cli.commands.model import model_file
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.paths import (
    CONFIDENCE_SUFFIX,
    PROBABILITY_SUFFIX,
    SOFT_SUFFIX,
    OutputPaths,
)
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.resume_state import parts_folder
from rsseg_cli.raster.source_files import source_files
from rsseg_cli.raster.write import check_output_path, sidecar_paths
from rsseg_cli.training.checkpoint import load_model

SHAPEFILE_SUFFIXES = (".shx", ".dbf", ".prj", ".cpg")
"""Suffixes of the files that are read with a shapefile."""


def refuse_replacing(outputs: Sequence[OutputPaths], options: PredictOptions) -> None:
    """Raise an OutputExistsError if a file would be replaced that is not of the resumed run.

    Soft maps are left to their writer: before the model is open, the number of classes is unknown.
    """
    for paths in outputs:
        for files in _files_by_map(paths, options):
            if not _may_resume(files[0], options):
                for path in files:
                    check_output_path(path, overwrite=False)


def refuse_inputs(
    scenes: Sequence[str], outputs: Sequence[OutputPaths], options: PredictOptions
) -> None:
    """Raise an RssegError if an output would replace an input, even with `overwrite`.

    Inputs are listed only if an output exists, since every scene is opened for that.
    """
    existing = [
        path
        for paths in outputs
        for path in (
            *(path for files in _files_by_map(paths, options) for path in files),
            *_with_sidecars(paths.with_suffix(SOFT_SUFFIX)),
        )
        if path.exists()
    ]
    if not existing:
        return
    inputs = {file for scene in scenes for file in source_files(scene)} | _further_inputs(options)
    for path in existing:
        if path.resolve() in inputs:
            raise RssegError("an output would replace an input", where=str(path), fix="another -o")


def _files_by_map(paths: OutputPaths, options: PredictOptions) -> list[list[Path]]:
    """List the files of a scene: those of the class map, then those of each explanation.

    The map itself is the first of its files.
    """
    quantities = []
    if options.probabilities:
        quantities.append(PROBABILITY_SUFFIX)
    if options.confidence is not None:
        quantities.append(CONFIDENCE_SUFFIX)
    explained = [paths.with_suffix(f".{name}.tif") for name in dict.fromkeys(options.explain)]
    groups = [[path, *sidecar_paths(path, classes=True)] for path in (paths.map, *explained)]
    if options.quicklook:
        for files in groups:
            files.append(paths.quicklook(files[0]))
    for suffix in quantities:
        groups[0] += _with_sidecars(paths.with_suffix(suffix))
    if paths.polygons is not None:
        groups[0].append(paths.polygons)
    return groups


def _with_sidecars(path: Path) -> list[Path]:
    """List a map of a quantity and its sidecars."""
    return [path, *sidecar_paths(path, classes=False)]


def _may_resume(path: Path, options: PredictOptions) -> bool:
    """Return whether existing files of a map may belong to the run that this one continues."""
    begun = path.exists() or parts_folder(path).exists()
    return distributed.begun_before_restart(path) or (options.resume and begun)


def _further_inputs(options: PredictOptions) -> set[Path]:
    """Return the files of the area, the model and its backbone, with links resolved."""
    model, weights = model_file(options.model), options.weights
    if weights is None:
        _, about = load_model(model)
        weights = about["config"]["backbone"].get("weights")
    files = [model] if weights is None else [model, Path(weights)]
    if options.aoi is not None:
        files += [options.aoi, *map(options.aoi.with_suffix, SHAPEFILE_SUFFIXES)]
    return {file.resolve() for file in files}
