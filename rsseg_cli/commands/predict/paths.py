"""Which scenes a prediction is asked for, and where their maps go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from rsseg_cli.commands.predict.provenance import is_ours
from rsseg_cli.data.spec.layout import RASTER_SUFFIXES
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.polygonize import refuse_other_formats
from rsseg_cli.raster.resume_state import parts_folder
from rsseg_cli.raster.write import refuse_existing

SUFFIX, SHARES, SOFT, SURE = ".seg.tif", ".prob.tif", ".soft.tif", ".conf.tif"
"""What the names of maps of classes, probabilities, one object and confidence end with."""
LOOK = ".png"
"""What takes the place of `.tif` in the name of a map's quicklook."""


def expand(texts: Sequence[str]) -> list[str]:
    """List the scenes meant by files, folders, patterns and `-` (stdin).

    Maps among what is listed are no scenes.

    Raises:
        RssegError: Nothing is there.
    """
    found: list[str] = []
    for text in texts:
        if text == "-":
            listed = [line.strip() for line in sys.stdin if line.strip()]
        elif Path(text).is_dir():
            inside = sorted(Path(text).iterdir())
            listed = [str(path) for path in inside if path.suffix.lower() in RASTER_SUFFIXES]
        elif has_magic(text) and not Path(text).exists():
            listed = sorted(glob(text))  # noqa: PTH207 - Path.glob refuses absolute patterns
        else:
            found.append(text)  # whoever names a file means it
            continue
        found += [path for path in listed if not _is_map(path)]
    if not found:
        raise RssegError(
            "there is no scene", where=" ".join(texts), fix="a file, a folder, or a quoted pattern"
        )
    return found


def _is_map(path: str) -> bool:
    """Tell what `predict` has made: by its name, or, where that may be anything, by its tags."""
    stem = path.removesuffix(LOOK).removesuffix(".tif")
    if stem == path:
        return False
    made = Path(f"{stem}.tif")
    if made.name.endswith((SUFFIX, SHARES, SOFT, SURE)):
        return True
    return "." in made.stem[1:] and made.is_file() and is_ours(made)


@dataclass(frozen=True)
class Target:
    """Where the products of one scene go.

    Attributes:
        map: The class map.
        polygons: The GeoPackage, None when none is wanted.
    """

    map: Path
    polygons: Path | None = None

    @property
    def stem(self) -> Path:
        """The map's path without its suffix, to which those of other maps are added."""
        cut = SUFFIX if self.map.name.endswith(SUFFIX) else self.map.suffix
        return self.map.with_name(self.map.name.removesuffix(cut))

    def beside(self, suffix: str) -> Path:
        """Name another map of the same scene."""
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def begun(self) -> bool:
        """Whether the map is there, or an earlier run has begun it."""
        return self.map.exists() or parts_folder(self.map).exists()

    def files(self, suffixes: Sequence[str]) -> list[Path]:
        """List the map, polygons, and maps of the same scene whose names end so."""
        drawn = [] if self.polygons is None else [self.polygons]
        return [self.map, *drawn, *map(self.beside, suffixes)]

    @property
    def texts(self) -> tuple[Path, ...]:
        """Texts beside the map that may be another file's: the user has named it."""
        if self.map.name.endswith(SUFFIX):
            return ()
        return self.map.with_suffix(".qml"), self.map.with_suffix(".json")

    def look(self, made: Path) -> Path:
        """Name the quicklook of a map; never as a scene may be called."""
        return self.beside(SUFFIX).with_suffix(LOOK) if made == self.map else made.with_suffix(LOOK)


def place_outputs(
    scenes: Sequence[str], output: Path | None, polygons: Path | None
) -> list[Target]:
    """Say where the map of each scene goes.

    Args:
        scenes: The scenes.
        output: A file for one scene, else a folder; where the call is made when None.
        polygons: Likewise for polygons; none when None.

    Raises:
        RssegError: Two scenes would have one map, or polygons another format.
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
    twice = {path for path in maps if maps.count(path) > 1}
    if twice:
        names = [s for s, path in zip(scenes, maps, strict=True) if path in twice]
        raise RssegError(
            f"two scenes would become {min(twice)}",
            where=", ".join(names),
            fix="one call per folder, each with its own -o",
        )
    for target in targets:
        if target.polygons is not None:
            refuse_other_formats(target.polygons)
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
    """Refuse to replace anything that is there.

    Raises:
        OutputExistsError: Something is.
    """
    for target in targets:
        for path in (*target.files(suffixes), *target.texts):
            refuse_existing(path, overwrite=False)


def refuse_scenes(
    scenes: Sequence[str], targets: Sequence[Target], suffixes: Sequence[str]
) -> None:
    """Refuse to put a map where a scene is, whatever may be replaced.

    Raises:
        RssegError: One would go there.
    """
    places = {Path(scene).resolve() for scene in scenes}
    for target in targets:
        for path in target.files(suffixes):
            if path.resolve() in places:
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
