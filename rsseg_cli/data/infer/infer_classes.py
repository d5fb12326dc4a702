"""Inference of the classes of labels from the ids, colours or attribute values in use."""

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
"""Largest number of distinct values that are taken for classes."""
FIELDS = ("class", "label", "category", "landcover", "land_cover", "cover", "kind", "type")
"""Names of attributes that hold the class, or parts of their names, best first."""
NAMES = ("name", "class_name", "classname", "label_name")
"""Attributes with the class names of a numeric field."""
GREY = (120, 120, 120)


@dataclass(frozen=True)
class InferredClasses:
    """Inferred settings of a spec; `remarks` list the assumptions."""

    classes: tuple[ClassSpec, ...]
    encoding: Encoding = "index"
    ignore: tuple[Value, ...] = ()
    field: str | None = None
    background: str | None = None
    remarks: tuple[str, ...] = ()


def find_classes(labels: Sequence[Path]) -> InferredClasses:
    """Infer the classes of label files.

    Raises:
        RssegError: There are too many distinct values, or the classes of rasters and polygons
            cannot be matched.
    """
    vectors = [path for path in labels if is_vector(path)]
    rasters = [path for path in labels if not is_vector(path)]
    if not vectors:
        return _in_rasters(rasters)
    if not rasters:
        return _in_vectors(vectors)
    return _join(_in_rasters(rasters), _in_vectors(vectors), rasters[0], vectors[0])


def _join(
    rasters: InferredClasses, polygons: InferredClasses, raster: Path, vector: Path
) -> InferredClasses:
    """Join the classes of rasters and polygons, which must have the same ids."""
    classes = {cls.id: cls for cls in (*polygons.classes, *rasters.classes)}
    numeric = all(cls.value is None or isinstance(cls.value, int) for cls in polygons.classes)
    if rasters.encoding != "index" or polygons.field is None or not numeric:
        raise RssegError(
            "some labels are rasters and some polygons, and their classes cannot be matched",
            where=f"{raster}, {vector}",
            fix="set the `value` of each class in the polygons in dataset.yaml",
        )
    return InferredClasses(
        classes=tuple(classes[number] for number in sorted(classes)),
        ignore=rasters.ignore,
        field=polygons.field,
        background=polygons.background,
        remarks=rasters.remarks + polygons.remarks,
    )


def _in_rasters(paths: Sequence[Path]) -> InferredClasses:
    by_bands = {}
    for path in reversed(paths):
        with Scene.open(path, warn=False) as scene:
            by_bands[scene.count] = path
    if len(by_bands) > 1:
        low, high = min(by_bands), max(by_bands)
        raise RssegError(
            f"labels differ in bands: {by_bands[low].name} has {low}, "
            f"{by_bands[high].name} has {high}",
            where=f"{by_bands[low]}, {by_bands[high]}",
            fix="write all labels in one way",
        )
    (bands,) = by_bands
    if bands in (3, 4):
        colors = {(int(r), int(g), int(b)) for path in paths for r, g, b, *_ in _distinct(path)}
        return InferredClasses(_color_classes(colors), encoding="rgb")
    if bands != 1:
        raise RssegError(
            f"the label has {bands} bands",
            where=str(paths[0]),
            fix="one band of ids, three of colours, or `encoding: onehot` in a dataset.yaml",
        )
    tables = [color_entries(path) for path in paths]
    if tables[0] and any(table != tables[0] for table in tables):
        # The files number their colours differently.
        colors = {
            table.get(int(value), (0, 0, 0))
            for path, table in zip(paths, tables, strict=True)
            for value in _distinct(path).ravel()
        }
        return InferredClasses(_color_classes(colors), encoding="palette")
    return _in_ids(paths, tables[0])


def _distinct(path: Path) -> NDArray[Any]:
    """Return the distinct values (n, bands) of the valid pixels of a label."""
    distinct: set[tuple[Any, ...]] = set()
    with Scene.open(path, warn=False) as scene:
        rows = max(1, 2**22 // scene.width)
        for window in blocks(scene.width, scene.height, (rows, scene.width)):
            values, valid = scene.read(window)
            distinct |= set(map(tuple, np.unique(values[:, valid], axis=1).T.tolist()))
            if len(distinct) > MOST:
                raise RssegError(
                    f"the label has more than {MOST} distinct values, too many for classes",
                    where=str(path),
                    fix="a label of class ids; or list the colours of the classes in dataset.yaml, "
                    "where colours that are slightly off are taken for the nearest",
                )
        return np.array(sorted(distinct))


def _in_ids(paths: Sequence[Path], table: dict[int, tuple[int, int, int]]) -> InferredClasses:
    values: set[float] = set()
    for path in paths:
        values |= {float(value) for value in _distinct(path).ravel()}
        invalid = sorted(v for v in values if not v.is_integer() or not 0 <= v <= 255)
        if invalid:
            raise RssegError(
                f"the label has the value {as_text(invalid[0])}, which is not a class id (0..254)",
                where=str(path),
                fix="`remap` or `ignore` such values in a dataset.yaml",
            )
    ids = sorted(int(value) for value in values)
    if ids in ([0, 255], [255]):
        return InferredClasses(
            classes=_background_and("object"),
            encoding="threshold",
            remarks=(
                "Labels hold 0 and 255, which is taken as background and object; "
                "`ignore: [255]` if 255 is not a class.",
            ),
        )
    classes = tuple(
        ClassSpec(id=value, name=f"class {value}", color=table.get(value, default_color(index)))
        for index, value in enumerate(value for value in ids if value != 255)
    )
    remarks = ("255 is ignored.",) if 255 in ids else ()
    return InferredClasses(classes, ignore=(255,) if 255 in ids else (), remarks=remarks)


def _background_and(name: str) -> tuple[ClassSpec, ...]:
    return (
        ClassSpec(id=0, name="background", color=GREY),
        ClassSpec(id=1, name=name, color=default_color(0)),
    )


def _color_classes(colors: set[tuple[int, int, int]]) -> tuple[ClassSpec, ...]:
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
        return _one_class(field, values, shared, tables)
    names = _class_names(field, values, shared, tables)
    are_ids = all(isinstance(value, int) and 0 <= value <= 254 for value in values)
    classes = tuple(
        ClassSpec(
            id=int(value) if are_ids else index + 1,
            name=names.get(as_text(value), f"class {value}" if are_ids else as_text(value)),
            color=default_color(index),
            value=None if are_ids else value,
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


def _one_class(
    field: str | None, values: list[int | str], shared: Sequence[str], tables: Sequence[Any]
) -> InferredClasses:
    """Infer one class, and background outside the polygons."""
    names = _class_names(field, values, shared, tables) if field else {}
    name = next(iter(names.values()), "")
    if not name and values and isinstance(values[0], str) and values[0].lower() != "yes":
        name = values[0]
    name = name or ("building" if "building" in shared else "object")
    remarks = [f"Every polygon is taken as {name}, all other pixels as background."]
    others = [column for column in shared if column != field]
    if others:
        remarks.append(f"`field: NAME` if one of these holds the classes: {', '.join(others)}.")
    return InferredClasses(_background_and(name), background="background", remarks=tuple(remarks))


def _choose_field(shared: Sequence[str], tables: Sequence[Any]) -> str | None:
    """Choose the attribute with the class: by name, or the only text with repeated values."""
    for name in FIELDS:
        exact = [column for column in shared if column.lower() == name]
        partial = [column for column in shared if name in column.lower()]
        for column in [*exact, *partial]:
            if 0 < len(_values(column, tables)) <= MOST:
                return column
    texts = [column for column in shared if _repeats(column, tables)]
    return texts[0] if len(texts) == 1 else None


def _repeats(field: str, tables: Sequence[Any]) -> bool:
    """Return whether the attribute is a text in every polygon, with few distinct values."""
    texts = [value for table in tables for value in table[field]]
    textual = all(isinstance(text, str) and not text.lstrip("-").isdigit() for text in texts)
    return textual and 2 <= len(set(texts)) <= min(MOST, len(texts) // 2)


def _values(field: str, tables: Sequence[Any]) -> list[int | str]:
    """Return the distinct values of an attribute, as integers if all are, else as texts."""
    texts = {as_text(value) for table in tables for value in table[field].dropna().unique()}
    texts.discard("")
    if all(text.lstrip("-").isdigit() for text in texts):
        return sorted(int(text) for text in texts)
    return sorted(texts)


def _class_names(
    field: str | None, values: Sequence[int | str], shared: Sequence[str], tables: Sequence[Any]
) -> dict[str, str]:
    """Return the names of the values of a numeric field, if another attribute has them."""
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
