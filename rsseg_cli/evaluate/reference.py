"""Reference of a map: its classes, their encoding, and a reader on the grid of the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import fspath
from pathlib import Path

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.infer.infer_classes import FIELDS
from rsseg_cli.data.spec.dataset_spec import DatasetSpec
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.align import AlignedLabels, describe_grid, same_grid
from rsseg_cli.raster.class_names import classes_in_use, read_classes
from rsseg_cli.raster.decode import LabelCode, as_text
from rsseg_cli.raster.grid import blocks
from rsseg_cli.raster.labels import LabelReader, RasterGrid, is_vector
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import read_vector

OBJECT_CLASSES = (Class(0, "background", (214, 219, 221)), Class(1, "object", (178, 24, 43)))
"""Classes of a soft map without a class list."""


def open_reference(path: Path, code: LabelCode, grid: RasterGrid, *, align: bool) -> LabelReader:
    """Open the reference of a map.

    Args:
        path: A raster or polygons.
        code: Encoding of the classes.
        grid: Grid of the map.
        align: Resample a raster on another grid by nearest neighbour.

    Raises:
        UnreadableError: The file is missing or broken.
        RssegError: The grids differ and `align` is off.
    """
    if is_vector(path):
        return LabelReader.open(path, code, grid)
    with Scene.open(path, warn=False) as scene:
        if same_grid(scene, grid):
            return LabelReader.open(path, code, grid)
        if not align:
            raise RssegError(
                "map and truth are on different grids\n"
                f"       map   {describe_grid(grid)}\n"
                f"       truth {describe_grid(scene)}",
                where=f"{grid.path}, {path}",
                fix="--align resamples the truth to the grid of the map (nearest neighbour)"
                if grid.crs and scene.crs
                else "write the missing CRS into the file; --align then resamples the truth",
            )
    return LabelReader(AlignedLabels.open(path, code, grid), grid)


def read_class_list(path: Path) -> LabelCode | list[Class]:
    """Read the classes of a map, or the encoding of the labels from a dataset.yaml.

    Raises:
        UnreadableError: The YAML file is missing or broken.
        RssegError: The file lists no classes, or has unknown settings.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return presets.read(path).parse(DatasetSpec).code()
    classes = read_classes(path)
    if not classes:
        raise RssegError(
            "the file lists no classes",
            where=str(path),
            fix="a dataset.yaml, or a map with its .aux.xml beside it",
        )
    return classes


def classes_of(
    prediction: Path, truth: Path, remarks: list[str], *, soft: bool = False
) -> list[Class]:
    """Return the classes listed beside the map, else beside the reference, else the ids in use.

    Args:
        prediction: The map.
        truth: The reference.
        remarks: Remarks for the reader of the scores, to which those on the classes are added.
        soft: The map holds probabilities.

    Raises:
        RssegError: The reference consists of polygons, and the map lists no classes.
    """
    of_map = read_classes(prediction)
    of_truth = [] if is_vector(truth) else read_classes(truth)
    names = {cls.id: cls.name for cls in of_truth}
    for cls in of_map:
        if names.get(cls.id, cls.name) != cls.name:
            remarks.append(f"id {cls.id} is {cls.name} in the map but {names[cls.id]} in the truth")
    if of_map or of_truth:
        return of_map or of_truth
    if soft:
        return list(OBJECT_CLASSES)
    if is_vector(truth):
        raise RssegError(
            "the classes of the map are unknown",
            where=f"{fspath(prediction)}.aux.xml",
            fix="--classes with the dataset.yaml or another map that lists them",
        )
    remarks.append("neither map nor truth lists its classes: the ids in use are the classes")
    return classes_in_use(prediction, truth)


def infer_code(
    truth: Path, classes: Sequence[Class], attribute: str | None, ignore: Sequence[int]
) -> LabelCode:
    """Infer the encoding of the classes in a reference.

    Args:
        truth: A raster of ids or RGB colours, or polygons.
        classes: The classes.
        attribute: Attribute of polygons with the class; None: inferred from the values.
        ignore: Ids to ignore besides 255. If 255 is listed, a reference of 0 and 255 is not read
            as a mask of two classes.

    Raises:
        RssegError: The attribute with the class cannot be inferred.
    """
    code = LabelCode(tuple(classes), ignore=(IGNORE, *ignore))
    if not is_vector(truth):
        with Scene.open(truth, warn=False) as scene:
            if len(classes) == 2 and IGNORE not in ignore and _is_mask(scene):
                return replace(code, encoding="threshold", ignore=tuple(ignore))
            return replace(code, encoding="rgb") if scene.count >= 3 else code
    names = [cls.name for cls in classes]
    single = len(names) == 2 and "background" in names
    background = names.index("background") if single else None
    code = replace(code, encoding="vector", background=background)
    return replace(code, field=attribute or _attribute(truth, code))


def _is_mask(scene: Scene) -> bool:
    """Return whether a reference is a mask of 0 and 255, in one band or three equal bands."""
    if scene.dtype != "uint8" or scene.nodata == IGNORE or scene.count not in (1, 3):
        return False
    has_object = False
    for window in blocks(scene.width, scene.height, (1024, 4096)):
        samples, _ = scene.read(window)
        high = samples == IGNORE
        if not (high | (samples == 0)).all() or not (high == high[0]).all():
            return False
        has_object |= bool(high.any())
    return has_object


def _attribute(truth: Path, code: LabelCode) -> str | None:
    """Infer the attribute of polygons with the class; None if all polygons are of one class."""
    table = read_vector(truth)
    columns: dict[str, set[str]] = {
        name: {as_text(value) for value in table[name].dropna()}
        for name in table.columns
        if name != table.geometry.name
    }
    known = set(code.attributes())
    names = {cls.name for cls in code.classes}
    candidates = [name for name, values in columns.items() if values and values <= known]
    with_names = [name for name in candidates if columns[name] & names]
    well_named = [name for name in candidates if any(word in name.lower() for word in FIELDS)]
    for matches in (with_names, well_named):
        if len(matches) == 1:
            return matches[0]
    if code.background is not None and not with_names:
        return None
    raise RssegError(
        "the attribute of the polygons that holds the class is ambiguous",
        where=str(truth),
        fix=f"--field with one of: {', '.join(columns)}",
    )
