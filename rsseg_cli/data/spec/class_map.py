"""Mapping of the classes of one dataset to those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from rsseg_cli import presets
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.spec.dataset_spec import ClassSpec
from rsseg_cli.errors import RssegError, unknown
from rsseg_cli.number_format import counted
from rsseg_cli.settings import Strict


@dataclass(frozen=True)
class Merge:
    """A class map applied to a class list.

    Attributes:
        classes: The output classes.
        table: Index in `classes` for each input class, `IGNORE` where it has no counterpart.
    """

    classes: tuple[Class, ...]
    table: tuple[int, ...]


class ClassMap(Strict):
    """The YAML of presets/maps/*.yaml and of a user's class map."""

    title: str = ""
    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=255)
    """The output classes."""
    map: dict[str, str | None]
    """Name of each input class to the name of an output class; null ignores the class."""
    sources: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _check_names(self) -> ClassMap:
        names = [cls.name for cls in self.classes]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"name {repeated[0]} occurs twice")
        unlisted = sorted({name for name in self.map.values() if name is not None} - set(names))
        if unlisted:
            raise ValueError(f"map: {unlisted[0]} is not one of the classes {', '.join(names)}")
        return self

    @classmethod
    def read(cls, text: str) -> ClassMap:
        """Read a class map from a YAML file or a preset name.

        Raises:
            RssegError: The file or preset does not exist, or is not a class map.
        """
        path = Path(text).expanduser()
        if path.suffix.lower() not in (".yaml", ".yml"):
            path = presets.find("maps", text)
        return presets.read(path).parse(cls)

    def class_list(self) -> list[Class]:
        """Return the output classes."""
        return [Class(cls.id, cls.name, cls.color) for cls in self.classes]

    def fit(self, classes: Sequence[Class], *, where: str) -> Merge:
        """Apply the map to the input classes of a dataset or model, named by `where` in errors.

        Raises:
            RssegError: A class is not mapped, or the map names a class that does not exist.
        """
        names, where = [cls.name for cls in classes], f"map, for {where}"
        for name in self.map:
            if name not in names:
                raise unknown("class", name, names, where=where)
        missing = [name for name in names if name not in self.map]
        if missing:
            raise RssegError(
                f"the map leaves out {counted(len(missing), 'class')}: {', '.join(missing)}",
                where=where,
                fix="a line for each: `name: other name`, or `name: null` for none",
            )
        indices = {cls.name: index for index, cls in enumerate(self.classes)}
        targets = [self.map[name] for name in names]
        table = tuple(IGNORE if target is None else indices[target] for target in targets)
        return Merge(tuple(self.class_list()), table)
