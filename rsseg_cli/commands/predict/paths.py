"""Input and output paths of a prediction."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from rsseg_cli.commands.predict.provenance import is_ours
from rsseg_cli.data.spec.layout import RASTER_SUFFIXES
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.polygonize import require_geopackage
from rsseg_cli.raster.resume_state import parts_folder
from rsseg_cli.raster.write import check_output_path

SUFFIX, SHARES, SOFT, SURE = ".seg.tif", ".prob.tif", ".soft.tif", ".conf.tif"
"""Suffixes of maps: classes, probabilities, probability of one object, and confidence."""
LOOK = ".png"
"""Suffix of a map's quicklook, instead of `.tif`."""


def expand(texts: Sequence[str]) -> list[str]:
    """List the scenes of files, folders, patterns and `-` (a list on stdin).

    Maps in folders and among the matches of patterns are left out.

    Raises:
        RssegError: There is no scene.
    """
    scenes: list[str] = []
    for text in texts:
        if text == "-":
            listed = [line.strip() for line in sys.stdin if line.strip()]
        elif Path(text).is_dir():
            inside = sorted(Path(text).iterdir())
            listed = [str(path) for path in inside if path.suffix.lower() in RASTER_SUFFIXES]
        elif has_magic(text) and not Path(text).exists():
            listed = sorted(glob(text))  # noqa: PTH207 - Path.glob refuses absolute patterns
        else:
            scenes.append(text)  # a named file is a scene even if it looks like a map
            continue
        scenes += [path for path in listed if not _is_map(path)]
    if not scenes:
        raise RssegError(
            "there is no scene", where=" ".join(texts), fix="a file, a folder, or a quoted pattern"
        )
    return scenes


def _is_map(path: str) -> bool:
    """Return whether `predict` has made a file: by its name, else by its tags."""
    stem = path.removesuffix(LOOK).removesuffix(".tif")
    if stem == path:
        return False
    raster = Path(f"{stem}.tif")
    if raster.name.endswith((SUFFIX, SHARES, SOFT, SURE)):
        return True
    return "." in raster.stem[1:] and raster.is_file() and is_ours(raster)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read `I/N` of `--shard`; 0/1 when None.

    Raises:
        RssegError: It is not I/N with 0 <= I < N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", "0/1" if text is None else text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise RssegError(
            f"--shard {text} is not I/N with I from 0 to N - 1",
            where="--shard",
            fix="--shard 0/4 for the first of four jobs, --shard 3/4 for the last",
        )
    return index, count


def choose_shard(scenes: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """Choose one of several disjoint shares that together have all scenes.

    Scenes are dealt out in turn, sorted by name. No file is opened: shards in different jobs
    agree even where one of them cannot read a file.
    """
    index, count = shard
    return sorted(scenes)[index::count]


@dataclass(frozen=True)
class Target:
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
        cut = SUFFIX if self.map.name.endswith(SUFFIX) else self.map.suffix
        return self.map.with_name(self.map.name.removesuffix(cut))

    def beside(self, suffix: str) -> Path:
        """Return the path of another map of the same scene."""
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def begun(self) -> bool:
        """Whether the map exists, or an earlier run has begun it."""
        return self.map.exists() or parts_folder(self.map).exists()

    def files(self, suffixes: Sequence[str]) -> list[Path]:
        """List the class map, the polygons, and the maps of the same scene with these suffixes."""
        polygons = [] if self.polygons is None else [self.polygons]
        return [self.map, *polygons, *map(self.beside, suffixes)]

    @property
    def texts(self) -> tuple[Path, ...]:
        """Sidecar files that may belong to another file, as the user has named the map."""
        if self.map.name.endswith(SUFFIX):
            return ()
        return self.map.with_suffix(".qml"), self.map.with_suffix(".json")

    def look(self, path: Path) -> Path:
        """Return the path of a map's quicklook; it never is that of a scene."""
        return self.beside(SUFFIX).with_suffix(LOOK) if path == self.map else path.with_suffix(LOOK)


def place_outputs(
    scenes: Sequence[str], output: Path | None, polygons: Path | None
) -> list[Target]:
    """Choose the output paths of each scene.

    Args:
        scenes: The scenes.
        output: A file for one scene, else a folder; the working directory when None.
        polygons: Likewise for polygons; no polygons when None.

    Raises:
        RssegError: Two scenes would have the same map, or polygons another format.
    """
    single = len(scenes) == 1
    targets = [
        Target(
            _place(scene, output or Path(), SUFFIX, single),
            None if polygons is None else _place(scene, polygons, ".gpkg", single),
        )
        for scene in scenes
    ]
    maps = [target.map for target in targets]
    twice = {path for path, times in Counter(maps).items() if times > 1}
    if twice:
        names = [s for s, path in zip(scenes, maps, strict=True) if path in twice]
        raise RssegError(
            f"two scenes would become {min(twice)}",
            where=", ".join(names),
            fix="one call per folder, each with its own -o",
        )
    for target in targets:
        if target.polygons is not None:
            require_geopackage(target.polygons)
    return targets


def make_folders(targets: Sequence[Target]) -> None:
    """Make the folders of maps and polygons.

    Raises:
        RssegError: One cannot be made.
    """
    for target in targets:
        for path in (target.map, target.polygons):
            if path is not None:
                _make_folder(path.parent)


def refuse_replacing(targets: Sequence[Target], suffixes: Sequence[str]) -> None:
    """Refuse to replace existing files.

    Raises:
        OutputExistsError: One exists.
    """
    for target in targets:
        for path in (*target.files(suffixes), *target.texts):
            check_output_path(path, overwrite=False)


def refuse_scenes(
    scenes: Sequence[str], targets: Sequence[Target], suffixes: Sequence[str]
) -> None:
    """Refuse to replace a scene by a map, even with `overwrite`.

    Raises:
        RssegError: An output is a scene.
    """
    inputs = {Path(scene).resolve() for scene in scenes}
    for target in targets:
        for path in target.files(suffixes):
            if path.resolve() in inputs:
                raise RssegError("a map would replace a scene", where=str(path), fix="another -o")


def _place(scene: str, output: Path, suffix: str, single: bool) -> Path:
    if single and output.suffix and not output.is_dir():
        return output
    return output / f"{Path(scene).stem}{suffix}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RssegError(
            f"the folder cannot be made: {error.strerror}", where=str(folder), fix="another -o"
        ) from error
