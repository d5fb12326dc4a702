"""Dataset spec: files, bands, classes and splits of a dataset.

A preset (`presets/datasets/<name>.yaml`) and a user's `dataset.yaml` have the same keys. Paths are
relative to the dataset's root and use `/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rsseg_cli.classes import Class
from rsseg_cli.presets import to_yaml
from rsseg_cli.raster.decode import Encoding, LabelCode, Value
from rsseg_cli.settings import Strict


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | int | float) else value


Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Byte: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class BandSpec(Strict):
    """One input channel of the model; `bands` lists them in channel order."""

    name: str
    wavelength_nm: float | None = None
    """Centre of the band; None for non-optical bands (height, temperature, masks)."""
    bandwidth_nm: float | None = None
    """Width of the band, an input of Copernicus-FM."""
    band: Annotated[int, Field(ge=1)] | None = None
    """Band number in the file, from 1; by default the position in the list."""


class ClassSpec(Strict):
    """One class; `id` is its pixel value in predicted maps."""

    id: Annotated[int, Field(ge=0, le=254)]
    name: str
    color: tuple[Byte, Byte, Byte]
    value: Value | None = None
    """Value of this class in the labels, if it is neither `id` nor `name`: a text or number of the
    vector field, a colour of an RGB or palette label, or a band number of a one-hot label."""


class Reader(Strict):
    """Options for opening image files."""

    raw: bool = False
    """Read the stored channels of a TIFF tagged CMYK, which GDAL converts to RGBA otherwise."""
    box: tuple[int, int, int, int] | None = None
    """Valid area x0, y0, x1, y1 of each file in pixels; pixels outside it are ignored."""
    crs: str | None = None
    """CRS that replaces a missing or wrong one in the files."""
    nodata: float | Literal["none"] | None = None
    """Nodata value in place of the file's tag; `none` to ignore a wrong tag."""


class SplitTable(Strict):
    """Selection of images by a table: those whose row has one of the values in `column`."""

    file: str
    """CSV or vector file below the root."""
    key: str
    """Column that identifies the image."""
    name: str
    """Template of an image's entry in `key`, filled with the groups of `pattern`."""
    column: str
    value: Texts


class Listing(Strict):
    """Text files whose lines pair an image with its label, if file names do not pair them."""

    files: dict[str, str]
    """Value of the group `split` to a text file below the root."""
    line: str
    """Regular expression of a line; its named groups fill the templates."""
    image: str
    label: str

    @field_validator("line")
    @classmethod
    def _compiles(cls, line: str) -> str:
        return _regex(line)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


class ImageSelection(Strict):
    """Selection of the images that meet every condition."""

    groups: dict[str, Texts] = Field(default_factory=dict)
    """Named group of `pattern` to its accepted values."""
    glob: Texts = ()
    """Patterns of image paths; `*` matches within a folder, `**` across folders, `{a,b}` either."""
    names: Texts = ()
    """Image names: the `stem` group, or the file name without suffix."""
    listed_in: str | None = None
    """Text file below the root with one image name (or path) per line."""
    table: SplitTable | None = None


class Split(ImageSelection):
    """A subset of the images, or of the pixels of each image."""

    exclude: Texts = ()
    """Other splits whose images and pixels are left out."""
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Box x0, y0, x1, y1 of every image, as fractions of its size."""
    blocks: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Fraction of the labelled area, drawn as spatial blocks that no other split overlaps."""
    labelled: bool = True
    """False if the labels are not published."""
    images: Annotated[int, Field(ge=1)] | None = None
    """Number of published images."""
    holds_back: bool = True
    """True if training on this split leaves out the pixels of `val`."""


class BandNorm(Strict):
    """Mean and standard deviation per band, in stored units."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0.0)], ...]


class DatasetSpec(Strict):
    """Description of a dataset: its files, bands, classes, label encoding and splits."""

    name: str
    title: str = ""
    size: str = ""
    """Number and size of the images, in words."""
    sensor: str = ""
    bands: tuple[BandSpec, ...] = Field(min_length=1)
    gsd_m: float | None = None
    dtype: str | None = None
    """Data type of the images, such as uint16; None accepts the type of the first one."""
    scale: float | None = None
    """Reflectance = stored value * scale."""

    root: str = "."
    """Folder of the dataset, relative to the data root or to this file."""
    images: Texts = ("images/**/*",)
    """Glob patterns of images; files that are not rasters or do not fit `pattern` are skipped."""
    pattern: str = r"images/(?P<stem>.+)\.[^./]+$"
    """Regular expression searched in the image path; its named groups fill `labels`."""
    labels: Texts = ("labels/{stem}.*",)
    """Templates of the label path with `{group}`, `{group:0>2}` or `*`; the first match is used."""
    listing: Listing | None = None
    """Files that pair images and labels, in place of `images`, `pattern` and `labels`."""
    spare_labels: bool = False
    """Accept labels without an image, if the images are published elsewhere."""
    reader: Reader = Reader()

    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=255)
    ignore: tuple[Value, ...] = ()
    """Ids, field values or colours in labels that are read as unlabelled."""
    encoding: Encoding = "index"
    """Encoding of raster labels. Vector labels are read by `field`."""
    align: bool = False
    """Resample raster labels to the grid of their images, nearest neighbour."""
    field: str | None = None
    """Attribute of vector labels that holds the class; None if all polygons are one class."""
    background: str | None = None
    """Class of pixels outside polygons, or `ignore`. By default the class named background if there
    is exactly one other class, else `ignore`."""
    tolerance: Annotated[float, Field(ge=0.0)] = 30.0
    """Largest Euclidean distance (0..441) between a colour of an RGB label and its class."""
    threshold: float = 127.5
    """With encoding `threshold`, labels above this value are the second of two classes."""
    remap: dict[int, int] = Field(default_factory=dict)
    """Id in a raster label to id of a class; applied before `ignore`."""

    splits: dict[str, Split] = Field(default_factory=dict)
    domains: dict[str, ImageSelection] = Field(default_factory=dict)
    """Named domains for domain generalisation; by default the `domain` group of `pattern`, in lower
    case."""
    norm: BandNorm | None = None
    url: str = ""
    licence: str = ""
    sources: tuple[str, ...] = ()
    notes: str = ""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _regex(pattern)

    @model_validator(mode="after")
    def _fits_together(self) -> DatasetSpec:
        for problem in (*self._class_problems(), *self._layout_problems()):
            raise ValueError(problem)
        return self

    def _class_problems(self) -> Iterator[str]:
        ids, names = [cls.id for cls in self.classes], [cls.name for cls in self.classes]
        bands = [band.name for band in self.bands]
        for key, values in (("id", list(map(str, ids))), ("name", names), ("band", bands)):
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                yield f"{key} {', '.join(repeated)} occurs twice"
        # An id may be ignored in the files and yet be a class, if others are mapped to it.
        unmapped = set(ids) - set(self.remap.values())
        both = sorted(unmapped & {value for value in self.ignore if isinstance(value, int)})
        if both:
            yield f"id {both[0]} is both a class and ignored"
        missing = sorted(set(self.remap.values()) - set(ids))
        if missing:
            yield f"remap: id {missing[0]} is not a class"
        if self.background not in (None, "ignore", *names):
            yield f"background: {self.background} is not a class (of {', '.join(names)})"
        if self.encoding == "threshold" and len(self.classes) != 2:
            yield "encoding threshold needs exactly two classes"
        if self.norm and {len(self.norm.mean), len(self.norm.std)} != {len(self.bands)}:
            yield "norm needs one mean and one std for each band"

    def _layout_problems(self) -> Iterator[str]:
        groups = set(re.compile(self.pattern).groupindex) | {"stem"}
        used = {name for template in self.labels for name in template_groups(template)}
        if self.listing:
            groups = set(re.compile(self.listing.line).groupindex) | {"stem", "split"}
            used = template_groups(self.listing.image) | template_groups(self.listing.label)
        for name in sorted(used - groups):
            yield f"labels: no group {name} in pattern"
        for name, selection in {**self.domains, **self.splits}.items():
            named = template_groups(selection.table.name) if selection.table else set()
            for group in sorted((set(selection.groups) | named) - groups):
                yield f"{name}: no group {group} in pattern"
        for name, split in self.splits.items():
            for other in split.exclude:
                if other == name or other not in self.splits:
                    yield f"splits.{name}: exclude: {other} is not another split"
            if split.box and not (split.box[0] < split.box[2] and split.box[1] < split.box[3]):
                yield f"splits.{name}: the box is empty"

    @property
    def file_bands(self) -> tuple[int, ...]:
        """Band numbers in the file (from 1), in channel order."""
        return tuple(band.band or index for index, band in enumerate(self.bands, start=1))

    def class_list(self) -> list[Class]:
        """Return the classes; label indices are positions in this list."""
        return [Class(cls.id, cls.name, cls.color) for cls in self.classes]

    def code(self) -> LabelCode:
        """Return the encoding of the labels."""
        return LabelCode(
            classes=tuple(self.class_list()),
            values=tuple(cls.value for cls in self.classes),
            encoding=self.encoding,
            ignore=self.ignore,
            remap=tuple(sorted(self.remap.items())),
            field=self.field,
            background=self._background(),
            tolerance=self.tolerance,
            threshold=self.threshold,
        )

    def _background(self) -> int | None:
        names = [cls.name for cls in self.classes]
        if self.background is None:
            binary = len(names) == 2 and "background" in names
            return names.index("background") if binary else None
        return None if self.background == "ignore" else names.index(self.background)

    def to_yaml(self, comment: str = "") -> str:
        """Return the spec as YAML without default values, `comment` on top behind `#`."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        for key, value in values.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"{key}:")
                rows = [{k: v for k, v in row.items() if v is not None} for row in value]
                lines += [f"- {_flow(row)}" for row in rows]
            elif isinstance(value, dict):
                lines.append(f"{key}:")
                lines += [f"  {_flow(name)}: {_flow(inner)}" for name, inner in value.items()]
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def template_groups(template: str) -> set[str]:
    """Return the names of the groups in a path template."""
    return {name.partition(".")[0] for _, name, _, _ in Formatter().parse(template) if name}


def _flow(value: object) -> str:
    return to_yaml(value, flow=True).strip()
