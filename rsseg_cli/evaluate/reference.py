"""How the truth of a map is opened: which classes there are and how the file says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import fspath
from pathlib import Path
from typing import Protocol

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.infer.infer_classes import FIELDS
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.align import AlignedLabels, describe_grid, same_grid
from rsseg_cli.raster.class_names import classes_in_use, read_classes
from rsseg_cli.raster.decode import LabelCode, Labels, as_text
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import LabelReader, Placed, is_vector
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import read_vector


class Truth(Protocol):
    """Anything that says class indices by window: a `LabelReader`, for one."""

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w), `IGNORE` where there is none; may hang over the border."""

    def close(self) -> None:
        """Close the file."""


def open_truth(path: Path, code: LabelCode, on: Placed, *, align: bool) -> Truth:
    """Open the truth of a map; refuse another grid unless it may be resampled."""
    if is_vector(path):
        return LabelReader.open(path, code, on)
    with Scene.open(path, warn=False) as scene:
        if same_grid(scene, on):
            return LabelReader.open(path, code, on)
        if not align:
            raise RssegError(
                "map and truth are on different grids\n"
                f"       map   {describe_grid(on)}\n"
                f"       truth {describe_grid(scene)}",
                where=f"{on.path}, {path}",
                fix="--align resamples the truth to the grid of the map (nearest neighbour)"
                if on.crs and scene.crs
                else "write the missing CRS into the file, then --align resamples the truth",
            )
    return AlignedLabels.open(path, code, on)


def read_class_list(path: Path) -> LabelCode | list[Class]:
    """Read classes from a dataset.yaml (and how its labels are written) or from a named map.

    Raises:
        UnreadableError: There is no such YAML file, or it is broken.
        RssegError: The file names no classes, or has unknown settings.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return presets.read(path).parse(DatasetSpec).code()
    found = read_classes(path)
    if not found:
        raise RssegError(
            "the file names no classes",
            where=str(path),
            fix="a dataset.yaml, or a map with its .aux.xml beside it",
        )
    return found


OBJECT = (Class(0, "background", (214, 219, 221)), Class(1, "object", (178, 24, 43)))
"""The classes of a soft map that names none."""


def classes_of(
    prediction: Path, truth: Path, remarks: list[str], *, soft: bool = False
) -> list[Class]:
    """Find the classes: those named beside the map, or beside the truth, or the ids in use."""
    named = read_classes(prediction)
    in_truth = [] if is_vector(truth) else read_classes(truth)
    others = {one.id: one.name for one in in_truth}
    for one in named:
        if others.get(one.id, one.name) != one.name:
            remarks.append(
                f"id {one.id} is {one.name} in the map but {others[one.id]} in the truth"
            )
    if named or in_truth:
        return named or in_truth
    if soft:
        return list(OBJECT)
    if is_vector(truth):
        raise RssegError(
            "nothing says which classes the ids of the map are",
            where=f"{fspath(prediction)}.aux.xml",
            fix="--classes with the dataset.yaml or another map that lists them",
        )
    remarks.append("neither map nor truth names its classes: the ids in use are taken")
    return classes_in_use(prediction, truth)


def code_of(
    truth: Path, classes: Sequence[Class], attribute: str | None, ignore: Sequence[int]
) -> LabelCode:
    """Say how a truth writes classes, from what is known and what the file shows.

    Args:
        truth: A raster of ids or RGB colours, or polygons.
        classes: The classes.
        attribute: Attribute of polygons that says the class; found by its values when None.
        ignore: Ids that are no class, besides 255. Naming 255 says that the truth is no mask of
            0 and 255.

    Raises:
        RssegError: No attribute of the polygons, or several, say the class.
    """
    code = LabelCode(tuple(classes), ignore=(IGNORE, *ignore))
    if not is_vector(truth):
        with Scene.open(truth, warn=False) as scene:
            if len(classes) == 2 and IGNORE not in ignore and _is_mask(scene):
                return replace(code, encoding="threshold", ignore=tuple(ignore))
            return replace(code, encoding="rgb") if scene.count >= 3 else code
    names = [one.name for one in classes]
    alone = len(names) == 2 and "background" in names
    code = replace(code, encoding="vector", background=names.index("background") if alone else None)
    return replace(code, field=attribute or _attribute(truth, code))


def _is_mask(scene: Scene) -> bool:
    """Tell whether a truth is a mask of 0 and 255, in one band or grey in three."""
    if scene.dtype != "uint8" or scene.nodata == IGNORE or scene.count not in (1, 3):
        return False
    found = False
    for window in blocks(scene.width, scene.height, (1024, 4096)):
        samples, _ = scene.read(window)
        high = samples == IGNORE
        if not (high | (samples == 0)).all() or not (high == high[0]).all():
            return False
        found |= bool(high.any())
    return found


def _attribute(truth: Path, code: LabelCode) -> str | None:
    """Find the attribute of polygons whose values are classes; None: polygons are one class."""
    table = read_vector(truth)
    columns: dict[str, set[str]] = {
        name: {as_text(value) for value in table[name].dropna()}
        for name in table.columns
        if name != table.geometry.name
    }
    known = set(code.attributes())
    names = {one.name for one in code.classes}
    fitting = [name for name, values in columns.items() if values and values <= known]
    named = [name for name in fitting if columns[name] & names]
    likely = [name for name in fitting if any(word in name.lower() for word in FIELDS)]
    for found in (named, likely):
        if len(found) == 1:
            return found[0]
    if code.background is not None and not named:
        return None
    raise RssegError(
        "which attribute of the polygons says the class is not clear",
        where=str(truth),
        fix=f"--field with one of: {', '.join(columns)}",
    )
