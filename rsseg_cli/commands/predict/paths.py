"""Input and output paths of a prediction."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from rsseg_cli.atomic_write import write_errors
from rsseg_cli.commands.predict.provenance import is_map
from rsseg_cli.data.spec.layout import RASTER_SUFFIXES
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.polygonize import require_geopackage

MAP_SUFFIX, PROBABILITY_SUFFIX = ".seg.tif", ".prob.tif"
SOFT_SUFFIX, CONFIDENCE_SUFFIX = ".soft.tif", ".conf.tif"
QUICKLOOK_SUFFIX = ".png"
"""Replaces the `.tif` of a map."""


def expand(texts: Sequence[str]) -> list[str]:
    """List the scenes of files, folders, glob patterns and `-` (a list on stdin).

    Maps and their quicklooks are left out, unless they are named as files.

    Raises:
        RssegError: There is no scene.
    """
    scenes: list[str] = []
    for text in texts:
        if text == "-":
            paths = [line.strip() for line in sys.stdin if line.strip()]
        elif Path(text).is_dir():
            files = sorted(Path(text).iterdir())
            paths = [str(file) for file in files if file.suffix.lower() in RASTER_SUFFIXES]
        elif has_magic(text) and not Path(text).exists():
            paths = sorted(glob(text))  # noqa: PTH207 - Path.glob refuses absolute patterns
        else:
            scenes.append(text)
            continue
        scenes += [path for path in paths if not _is_output(path)]
    if not scenes:
        raise RssegError(
            "there is no scene", where=" ".join(texts), fix="a file, a folder, or a quoted pattern"
        )
    return scenes


def _is_output(path: str) -> bool:
    """Return whether a file is a map or its quicklook, by the map's name or tags."""
    stem = path.removesuffix(QUICKLOOK_SUFFIX).removesuffix(".tif")
    if stem == path:
        return False
    raster = Path(f"{stem}.tif")
    if raster.name.endswith((MAP_SUFFIX, PROBABILITY_SUFFIX, SOFT_SUFFIX, CONFIDENCE_SUFFIX)):
        return True
    return "." in raster.stem[1:] and raster.is_file() and is_map(raster)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parse `I/N` of `--shard`; 0/1 when None.

    Raises:
        RssegError: It is not I/N with 0 <= I < N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", "0/1" if text is None else text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise RssegError(
            f"--shard {text} is not I/N with I from 0 to N - 1",
            where="--shard",
            fix="of four jobs, --shard 0/4 for the first and --shard 3/4 for the last",
        )
    return index, count


def choose_shard(scenes: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """Return every N-th of the sorted scenes, from the I-th on.

    The choice depends on names only, so that jobs agree even if one of them cannot read a file.
    """
    index, count = shard
    return sorted(scenes)[index::count]


@dataclass(frozen=True)
class OutputPaths:
    """Output paths of one scene.

    Attributes:
        map: The class map.
        polygons: The GeoPackage; None without polygons.
    """

    map: Path
    polygons: Path | None = None

    @property
    def stem(self) -> Path:
        """The map's path without its suffix; other maps add theirs."""
        suffix = MAP_SUFFIX if self.map.name.endswith(MAP_SUFFIX) else self.map.suffix
        return self.map.with_name(self.map.name.removesuffix(suffix))

    def with_suffix(self, suffix: str) -> Path:
        """Return the path of another map of the same scene."""
        return self.stem.with_name(self.stem.name + suffix)

    def quicklook(self, path: Path) -> Path:
        """Return the path of a map's quicklook, which is never that of a scene."""
        path = self.with_suffix(MAP_SUFFIX) if path == self.map else path
        return path.with_suffix(QUICKLOOK_SUFFIX)


def choose_outputs(
    scenes: Sequence[str], output: str | None, polygons: str | None
) -> list[OutputPaths]:
    """Choose the output paths of each scene.

    Args:
        scenes: The scenes.
        output: A file for one scene, else a folder; the working directory when None. A name that
            ends with a slash is a folder.
        polygons: Likewise for polygons; no polygons when None.

    Raises:
        RssegError: Two scenes would have the same map, or polygons another format.
    """

    def path(scene: str, output: str, suffix: str) -> Path:
        target = Path(output)
        is_folder = output.endswith(("/", os.sep)) or target.is_dir() or not target.suffix
        if len(scenes) == 1 and not is_folder:
            return target
        return target / f"{Path(scene).stem}{suffix}"

    outputs = [
        OutputPaths(
            path(scene, output or ".", MAP_SUFFIX),
            None if polygons is None else path(scene, polygons, ".gpkg"),
        )
        for scene in scenes
    ]
    counts = Counter(paths.map for paths in outputs)
    repeated = {path for path, count in counts.items() if count > 1}
    if repeated:
        names = [s for s, paths in zip(scenes, outputs, strict=True) if paths.map in repeated]
        raise RssegError(
            f"two scenes would become {min(repeated)}",
            where=", ".join(names),
            fix="one call per folder, each with its own -o",
        )
    for paths in outputs:
        if paths.polygons is not None:
            require_geopackage(paths.polygons)
    return outputs


def create_folders(outputs: Sequence[OutputPaths]) -> None:
    """Create the folders of maps and polygons.

    Raises:
        RssegError: One cannot be created.
    """
    for paths in outputs:
        for path in filter(None, (paths.map, paths.polygons)):
            with write_errors("the folder", path.parent, fix="another -o"):
                path.parent.mkdir(parents=True, exist_ok=True)
