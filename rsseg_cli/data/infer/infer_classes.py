"""Infers the classes of labels from the ids, colours or attribute values in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import default_color, hex_color
from rsseg_cli.data.spec.dataset_spec import ClassSpec
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.decode import Encoding, Value, as_text
from rsseg_cli.raster.grid import blocks
from rsseg_cli.raster.labels import color_entries, is_vector
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import read_vector

MOST = 64
"""More distinct values than this are measurements, not classes."""
FIELDS = ("class", "label", "category", "landcover", "land_cover", "cover", "kind", "type")
"""Attributes, or parts of their names, that are taken for the class, best first."""
NAMES = ("name", "class_name", "classname", "label_name")
"""Attributes that name the classes of a numeric field."""
GREY = (120, 120, 120)


@dataclass(frozen=True)
class InferredClasses:
    """Inferred classes, as settings of a spec; `remarks` list the assumptions."""

    classes: tuple[ClassSpec, ...]
    encoding: Encoding = "index"
    ignore: tuple[Value, ...] = ()
    field: str | None = None
    background: str | None = None
    remarks: tuple[str, ...] = ()


def find_classes(labels: Sequence[Path]) -> InferredClasses:
    """Find the classes that label files use.

    Raises:
        RssegError: Too many distinct values, or rasters and polygons whose classes do not meet.
    """
    vectors = [path for path in labels if is_vector(path)]
    rasters = [path for path in labels if not is_vector(path)]
    if not vectors:
        return _in_rasters(rasters)
    if not rasters:
        return _in_vectors(vectors)
    return _join(_in_rasters(rasters), _in_vectors(vectors), rasters[0], vectors[0])


def _join(
    drawn: InferredClasses, burned: InferredClasses, raster: Path, vector: Path
) -> InferredClasses:
    """Join the classes of rasters and polygons, which must mean the same ids."""
    ids = {one.id: one for one in burned.classes} | {one.id: one for one in drawn.classes}
    numeric = all(one.value is None or isinstance(one.value, int) for one in burned.classes)
    if drawn.encoding != "index" or burned.field is None or not numeric:
        raise RssegError(
            "some labels are rasters and some polygons, and their classes cannot be matched",
            where=f"{raster}, {vector}",
            fix="say in dataset.yaml which `value` of the polygons is which id",
        )
    return InferredClasses(
        classes=tuple(ids[number] for number in sorted(ids)),
        ignore=drawn.ignore,
        field=burned.field,
        background=burned.background,
        remarks=drawn.remarks + burned.remarks,
    )


def _in_rasters(paths: Sequence[Path]) -> InferredClasses:
    kinds = {_bands_of(path): path for path in reversed(paths)}
    if len(kinds) > 1:
        few, many = kinds[min(kinds)], kinds[max(kinds)]
        raise RssegError(
            f"labels differ in bands: {few.name} has {min(kinds)}, {many.name} has {max(kinds)}",
            where=f"{few}, {many}",
            fix="write all labels in one way",
        )
    (bands,) = kinds
    if bands in (3, 4):
        return _colored(paths)
    if bands != 1:
        raise RssegError(
            f"the label has {bands} bands",
            where=str(paths[0]),
            fix="one band of ids, three of colours, or `encoding: onehot` in a dataset.yaml",
        )
    tables = [color_entries(path) for path in paths]
    if tables[0] and any(table != tables[0] for table in tables):
        return _palettes(paths, tables)
    return _ids(paths, tables[0])


def _bands_of(path: Path) -> int:
    with Scene.open(path, warn=False) as scene:
        return scene.count


def _distinct(path: Path) -> tuple[NDArray[Any], float | None]:
    """List the distinct values (n, bands) of the valid pixels of a label, and its nodata tag."""
    found: set[tuple[Any, ...]] = set()
    with Scene.open(path, warn=False) as scene:
        rows = max(1, 2**22 // scene.width)
        for window in blocks(scene.width, scene.height, (rows, scene.width)):
            values, valid = scene.read(window)
            found |= set(map(tuple, np.unique(values[:, valid], axis=1).T.tolist()))
            if len(found) > MOST:
                raise RssegError(
                    f"the label holds more than {MOST} distinct values, too many for classes",
                    where=str(path),
                    fix="a label of class ids; or list the colours of the classes in dataset.yaml, "
                    "where colours that are slightly off are taken for the nearest",
                )
        return np.array(sorted(found)), scene.nodata


def _ids(paths: Sequence[Path], table: dict[int, tuple[int, int, int]]) -> InferredClasses:
    found: set[float] = set()
    for path in paths:
        values, _ = _distinct(path)
        found |= {float(value) for value in values.ravel()}
        odd = sorted(v for v in found if not v.is_integer() or not 0 <= v <= 255)
        if odd:
            raise RssegError(
                f"the label holds {as_text(odd[0])}, which is not a class id (0..254)",
                where=str(path),
                fix="`remap` or `ignore` such values in a dataset.yaml",
            )
    ids = sorted(int(value) for value in found)
    if ids in ([0, 255], [255]):
        return InferredClasses(
            classes=(
                ClassSpec(id=0, name="background", color=GREY),
                ClassSpec(id=1, name="object", color=default_color(0)),
            ),
            encoding="threshold",
            remarks=(
                "Labels hold 0 and 255, which is taken as background and object; "
                "`ignore: [255]` if 255 means no class.",
            ),
        )
    classes = tuple(
        ClassSpec(id=value, name=f"class {value}", color=table.get(value, default_color(index)))
        for index, value in enumerate(value for value in ids if value != 255)
    )
    remarks = ("255 is ignored.",) if 255 in ids else ()
    return InferredClasses(classes, ignore=(255,) if 255 in ids else (), remarks=remarks)


def _palettes(
    paths: Sequence[Path], tables: Sequence[dict[int, tuple[int, int, int]]]
) -> InferredClasses:
    """Return one class per colour where files number the same colours differently."""
    colors: set[tuple[int, int, int]] = set()
    for path, table in zip(paths, tables, strict=True):
        values, _ = _distinct(path)
        colors |= {table.get(int(value), (0, 0, 0)) for value in values.ravel()}
    return InferredClasses(_of_colors(colors), encoding="palette")


def _colored(paths: Sequence[Path]) -> InferredClasses:
    colors: set[tuple[int, int, int]] = set()
    for path in paths:
        values, _ = _distinct(path)
        colors |= {(int(row[0]), int(row[1]), int(row[2])) for row in values}
    return InferredClasses(_of_colors(colors), encoding="rgb")


def _of_colors(colors: set[tuple[int, int, int]]) -> tuple[ClassSpec, ...]:
    return tuple(
        ClassSpec(id=index, name=hex_color(color), color=color)
        for index, color in enumerate(sorted(colors))
    )


def _in_vectors(paths: Sequence[Path]) -> InferredClasses:
    tables = [read_vector(path) for path in paths]
    shared = [
        column
        for column in tables[0].columns
        if column != "geometry" and all(column in table.columns for table in tables)
    ]
    field = _choose_field(shared, tables)
    values = [] if field is None else _values(field, tables)
    ignore = tuple(value for value in values if value == 255)
    values = [value for value in values if value != 255]
    if field is None or len(values) == 1:
        return _single(field, values, shared, tables)
    named = _named(field, values, shared, tables)
    own = all(isinstance(value, int) and 0 <= value <= 254 for value in values)
    classes = tuple(
        ClassSpec(
            id=int(value) if own else index + 1,
            name=named.get(as_text(value), f"class {value}" if own else as_text(value)),
            color=default_color(index),
            value=None if own else value,
        )
        for index, value in enumerate(values)
    )
    return InferredClasses(
        classes,
        ignore=ignore,
        field=field,
        background="ignore",
        remarks=(f"The attribute {field} holds the classes; pixels outside polygons have none.",),
    )


def _single(
    field: str | None, values: list[int | str], shared: Sequence[str], tables: Sequence[Any]
) -> InferredClasses:
    """One class and the ground around it."""
    named = _named(field, values, shared, tables) if field else {}
    name = next(iter(named.values()), "")
    if not name and values and isinstance(values[0], str) and values[0].lower() != "yes":
        name = values[0]
    name = name or ("building" if "building" in shared else "object")
    classes = (
        ClassSpec(id=0, name="background", color=GREY),
        ClassSpec(id=1, name=name, color=default_color(0)),
    )
    other = [column for column in shared if column != field]
    return InferredClasses(
        classes,
        background="background",
        remarks=(
            f"Every polygon is taken as {name}, the ground outside them as background.",
            *(
                [f"`field: NAME` if one of these holds the classes: {', '.join(other)}."]
                if other
                else []
            ),
        ),
    )


def _choose_field(shared: Sequence[str], tables: Sequence[Any]) -> str | None:
    """Choose the attribute with the class: by name, or the only text with repeated values."""
    for wanted in FIELDS:
        exact = [column for column in shared if column.lower() == wanted]
        partly = [column for column in shared if wanted in column.lower()]
        for column in [*exact, *partly]:
            if 0 < len(_values(column, tables)) <= MOST:
                return column
    texts = [column for column in shared if _repeats(column, tables)]
    return texts[0] if len(texts) == 1 else None


def _repeats(field: str, tables: Sequence[Any]) -> bool:
    """Return whether every polygon has a text, and few of the texts differ."""
    texts = [value for table in tables for value in table[field]]
    distinct = set(texts)
    worded = all(isinstance(text, str) and not text.lstrip("-").isdigit() for text in texts)
    return worded and 2 <= len(distinct) <= min(MOST, len(texts) // 2)


def _values(field: str, tables: Sequence[Any]) -> list[int | str]:
    """List the distinct values of an attribute: whole numbers if all are, else texts."""
    texts = {as_text(value) for table in tables for value in table[field].dropna().unique()}
    texts.discard("")
    if all(text.lstrip("-").isdigit() for text in texts):
        return sorted(int(text) for text in texts)
    return sorted(texts)


def _named(
    field: str | None, values: Sequence[int | str], shared: Sequence[str], tables: Sequence[Any]
) -> dict[str, str]:
    """Find names for the values of a numeric field, in an attribute that goes along with it."""
    column = next((c for c in shared if c.lower() in NAMES and c != field), None)
    if column is None or not all(isinstance(value, int) for value in values):
        return {}
    pairs = {
        (as_text(value), as_text(name))
        for table in tables
        for value, name in zip(table[field], table[column], strict=True)
    }
    one_to_one = len(pairs) == len({v for v, _ in pairs}) == len({n for _, n in pairs})
    return dict(pairs) if one_to_one else {}
