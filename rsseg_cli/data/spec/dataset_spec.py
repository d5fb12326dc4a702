"""Dataset spec: files, bands, classes and splits, as a flat and strict YAML.

A preset (`presets/datasets/<name>.yaml`) and a user's `dataset.yaml` have the same form. Paths in
it are relative to the dataset's root and use `/`.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rsseg_cli.classes import Class
from rsseg_cli.presets import to_yaml
from rsseg_cli.raster.decode import Encoding, LabelCode, Value
from rsseg_cli.settings import Strict


def _listed(value: Any) -> Any:
    """Return a single text as a list of one."""
    return (value,) if isinstance(value, str | int | float) else value


Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Byte: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class BandSpec(Strict):
    """One channel, in the order in which models see it."""

    name: str
    wavelength_nm: float | None = None
    """Centre of the band; None for non-optical bands (height, temperature, masks)."""
    bandwidth_nm: float | None = None
    """Width of the band, an input of Copernicus-FM."""
    band: Annotated[int, Field(ge=1)] | None = None
    """Band of the file, from 1; by default the position in the list."""


class ClassSpec(Strict):
    """One class; maps hold its `id`."""

    id: Annotated[int, Field(ge=0, le=254)]
    name: str
    color: tuple[Byte, Byte, Byte]
    value: Value | None = None
    """How labels say this class, where neither by `id` nor by `name`: a text or number of the
    vector field, a colour of an RGB or palette label, a band number of a one-hot label."""


class Reader(Strict):
    """How image files are opened."""

    raw: bool = False
    """Read the stored channels of a TIFF tagged CMYK, which would turn into RGBA otherwise."""
    box: tuple[int, int, int, int] | None = None
    """Valid part x0, y0, x1, y1 of each file in pixels: what is outside is a margin."""
    crs: str | None = None
    """CRS of files that name none, or a wrong one."""
    nodata: float | Literal["none"] | None = None
    """Value of missing pixels instead of the file's tag; `none` when the tag is wrong."""


class SplitTable(Strict):
    """Rows of a table that name images: those whose `column` holds one of some texts."""

    file: str
    """CSV or vector file below the root."""
    key: str
    """Column that names the image of a row."""
    name: str
    """Key of an image in that column: a template of the groups of `pattern`."""
    column: str
    value: Texts


class Listing(Strict):
    """Text files whose lines name an image and its label, where names alone do not pair them."""

    files: dict[str, str]
    """Text of the group `split` to a file below the root."""
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
    """Named group of `pattern` to the texts it may have."""
    glob: Texts = ()
    """Paths of images; `*` matches within a folder, `**` across folders, `{a,b}` either."""
    names: Texts = ()
    """Names of images: the `stem` group, or the file name without suffix."""
    listed_in: str | None = None
    """Text file below the root with one such name (or path) per line."""
    table: SplitTable | None = None


class Split(ImageSelection):
    """A part of a dataset: some images, or some ground of all of them."""

    exclude: Texts = ()
    """Other splits whose images and ground are left out."""
    box: tuple[Fraction, Fraction, Fraction, Fraction] | None = None
    """Part x0, y0, x1, y1 of every image, as fractions of its size."""
    blocks: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the labelled ground, drawn as spatial blocks that no other split touches."""
    labelled: bool = True
    """False where the labels are withheld."""
    images: Annotated[int, Field(ge=1)] | None = None
    """How many images were published."""
    holds_back: bool = True
    """Whether training on it leaves the ground of `val` out; False: it is all for training."""


class BandNorm(Strict):
    """Mean and standard deviation per band, in stored units."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0.0)], ...]


class DatasetSpec(Strict):
    """Everything that is known about a dataset before its files are read."""

    name: str
    title: str = ""
    size: str = ""
    """How many images of how many pixels, in words."""
    sensor: str = ""
    bands: tuple[BandSpec, ...] = Field(min_length=1)
    gsd_m: float | None = None
    dtype: str | None = None
    """Type of stored values; files that differ are refused. None: whatever they hold."""
    scale: float | None = None
    """Reflectance = stored value * scale."""

    root: str = "."
    """Folder of the dataset below the data root, or beside this file."""
    images: Texts = ("images/**/*",)
    """Where images lie; of what matches, files that fit `pattern` and are rasters count."""
    pattern: str = r"images/(?P<stem>.+)\.[^./]+$"
    """Regular expression searched in the path of an image; its named groups fill `labels`."""
    labels: Texts = ("labels/{stem}.*",)
    """Templates of the label's path, `{group}` or `{group:0>2}` and `*`; the first hit counts."""
    listing: Listing | None = None
    """Files that pair images and labels, in place of `images`, `pattern` and `labels`."""
    spare_labels: bool = False
    """Labels without an image are not a mistake: the images are published elsewhere."""
    reader: Reader = Reader()

    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=255)
    ignore: tuple[Value, ...] = ()
    """Ids, field values or colours of labels that mean: no class."""
    encoding: Encoding = "index"
    """What raster labels hold. Vector files are always read by `field`."""
    align: bool = False
    """Raster labels on another grid than their images are resampled, nearest neighbour."""
    field: str | None = None
    """Attribute of vector labels with the class; None: every polygon is the same class."""
    background: str | None = None
    """Class of ground outside polygons, or `ignore`. By default a class called background that
    stands beside a single other one, else `ignore`."""
    tolerance: Annotated[float, Field(ge=0.0)] = 30.0
    """How far (Euclidean, 0..441) a colour of an RGB label may be from its class."""
    threshold: float = 127.5
    """Labels of two classes with encoding `threshold`: values above it are the second class."""
    remap: dict[int, int] = Field(default_factory=dict)
    """Id in a raster label to id of a class, where they differ. It goes before `ignore`, and that
    before the ids of the classes."""

    splits: dict[str, Split] = Field(default_factory=dict)
    domains: dict[str, ImageSelection] = Field(default_factory=dict)
    """Named parts for domain generalisation; without them a `domain` group of `pattern` names
    the domain of each image, in lower case."""
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
        for complaint in (*self._class_complaints(), *self._layout_complaints()):
            raise ValueError(complaint)
        return self

    def _class_complaints(self) -> list[str]:
        found = []
        ids, names = [cls.id for cls in self.classes], [cls.name for cls in self.classes]
        bands = [one.name for one in self.bands]
        for what, given in (("id", [str(one) for one in ids]), ("name", names), ("band", bands)):
            twice = sorted({one for one in given if given.count(one) > 1})
            found += [f"{what} {', '.join(twice)} occurs twice"] if twice else []
        # An id may be ignored in the files and yet be a class, if others are mapped to it.
        unmapped = set(ids) - set(self.remap.values())
        both = sorted(unmapped & {one for one in self.ignore if isinstance(one, int)})
        found += [f"id {both[0]} is both a class and ignored"] if both else []
        lost = sorted(set(self.remap.values()) - set(ids))
        found += [f"remap leads to id {lost[0]}, which is not a class"] if lost else []
        if self.background not in (None, "ignore", *names):
            found.append(f"background: {self.background} is not a class (of {', '.join(names)})")
        if self.encoding == "threshold" and len(self.classes) != 2:
            found.append("encoding threshold needs exactly two classes")
        if self.norm and {len(self.norm.mean), len(self.norm.std)} != {len(self.bands)}:
            found.append("norm needs one mean and one std for each band")
        return found

    def _layout_complaints(self) -> list[str]:
        groups = set(re.compile(self.pattern).groupindex) | {"stem"}
        used = {name for template in self.labels for name in template_groups(template)}
        if self.listing:
            groups = set(re.compile(self.listing.line).groupindex) | {"stem", "split"}
            used = template_groups(self.listing.image) | template_groups(self.listing.label)
        found = [f"labels: no group {name} in pattern" for name in sorted(used - groups)]
        for name, selection in {**self.domains, **self.splits}.items():
            named = template_groups(selection.table.name) if selection.table else set()
            lost = sorted((set(selection.groups) | named) - groups)
            found += [f"{name}: no group {lost[0]} in pattern"] if lost else []
        for name, split in self.splits.items():
            lost = sorted(set(split.exclude) - set(self.splits) | (set(split.exclude) & {name}))
            found += [f"splits.{name}: exclude names no other split: {lost[0]}"] if lost else []
            if split.box and not (split.box[0] < split.box[2] and split.box[1] < split.box[3]):
                found.append(f"splits.{name}: the box is empty")
        return found

    @property
    def file_bands(self) -> tuple[int, ...]:
        """Bands of the file (from 1) in the order of `bands`."""
        return tuple(one.band or index for index, one in enumerate(self.bands, start=1))

    def class_list(self) -> list[Class]:
        """List the classes; a label index is a place in this list."""
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
            alone = len(names) == 2 and "background" in names
            return names.index("background") if alone else None
        return None if self.background == "ignore" else names.index(self.background)

    def to_yaml(self, comment: str = "") -> str:
        """Write the spec as a file that `DatasetSpec` reads back, leaving out what is default.

        Args:
            comment: Lines put on top, each behind a `#`.
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        lines = [f"# {line}".rstrip() for line in comment.splitlines()]
        for key, value in values.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines.append(f"{key}:")
                lines += [f"- {_flow(_without_none(row))}" for row in value]
            elif isinstance(value, dict):
                lines.append(f"{key}:")
                lines += [f"  {_flow(name)}: {_flow(inner)}" for name, inner in value.items()]
            else:
                lines.append(f"{key}: {_flow(value)}")
        return "\n".join(lines) + "\n"


def template_groups(template: str) -> set[str]:
    """Return the names of the groups in a path template."""
    return {name.partition(".")[0] for _, name, _, _ in Formatter().parse(template) if name}


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _flow(value: object) -> str:
    return to_yaml(value, flow=True).strip()
