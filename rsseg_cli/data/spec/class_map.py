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
    """A class map that fits a class list.

    Attributes:
        classes: What comes out.
        table: Per class that goes in its place in `classes`, `IGNORE` where it has none.
    """

    classes: tuple[Class, ...]
    table: tuple[int, ...]


class ClassMap(Strict):
    """The YAML of presets/maps/*.yaml and of a user's map."""

    title: str = ""
    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=255)
    """The classes that come out."""
    map: dict[str, str | None]
    """Name of a class that goes in to the name of one that comes out; null: none."""
    sources: tuple[str, ...] = ()
    notes: str = ""

    @model_validator(mode="after")
    def _leads_somewhere(self) -> ClassMap:
        names = [cls.name for cls in self.classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"name {twice[0]} occurs twice")
        lost = sorted({name for name in self.map.values() if name is not None} - set(names))
        if lost:
            raise ValueError(f"map leads to {lost[0]}, which is not a class of {', '.join(names)}")
        return self

    @classmethod
    def read(cls, text: str) -> ClassMap:
        """Read a map by file or by the name of a preset.

        Raises:
            RssegError: The file or preset does not exist, or is not a class map.
        """
        path = Path(text).expanduser()
        if path.suffix.lower() not in (".yaml", ".yml"):
            path = presets.find("maps", text)
        return presets.read(path).parse(cls)

    def class_list(self) -> list[Class]:
        """List the classes that come out."""
        return [Class(cls.id, cls.name, cls.color) for cls in self.classes]

    def fit(self, classes: Sequence[Class], *, where: str) -> Merge:
        """Apply the map to a class list.

        Args:
            classes: What goes in.
            where: Whose classes these are.

        Raises:
            RssegError: A class is not mapped, or the map names one that is not there.
        """
        names = [cls.name for cls in classes]
        strange = [name for name in self.map if name not in names]
        if strange:
            raise unknown("class", strange[0], names, where=f"map, for {where}")
        missing = [name for name in names if name not in self.map]
        if missing:
            raise RssegError(
                f"the map leaves out {counted(len(missing), 'class')}: {', '.join(missing)}",
                where=f"map, for {where}",
                fix="a line for each: `name: other name`, or `name: null` for none",
            )
        place = {cls.name: index for index, cls in enumerate(self.classes)}
        targets = [self.map[name] for name in names]
        table = tuple(IGNORE if target is None else place[target] for target in targets)
        return Merge(tuple(self.class_list()), table)
