"""Finds preset files and reads YAML strictly, able to tell the line of every key."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

import yaml

from rsseg_cli.errors import RssegError, UnreadableError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Kind = Literal["methods", "datasets", "experiments", "maps"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Key: TypeAlias = tuple[str | int, ...]
M = TypeVar("M", bound="BaseModel")


@cache
def folder() -> Path:
    """Find the folder of presets: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    for candidate in (package / "_presets", package.parent / "presets"):
        if candidate.is_dir():
            return candidate
    raise RssegError(
        "the presets are missing from this installation",
        where=str(package),
        fix="install rsseg-cli again",
    )


def names(kind: Kind) -> tuple[str, ...]:
    """List the presets of a kind, by path below its folder and without suffix."""
    root = folder() / kind
    return tuple(
        sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    )


def find(kind: Kind, name: str, *, where: str = "") -> Path:
    """Find the file of a preset.

    Raises:
        RssegError: No such preset; the nearest names are listed.
    """
    if name not in names(kind):
        raise unknown(f"{kind.removesuffix('s')} preset", name, names(kind), where=where)
    return folder() / kind / f"{name}.yaml"


def title(kind: Kind, name: str) -> str:
    """Read the title of a preset."""
    return str(read(find(kind, name)).values.get("title", ""))


@dataclass(frozen=True)
class Document:
    """What a YAML file says, and on which line it says it."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int] = field(repr=False, default_factory=dict)
    elsewhere: dict[Key, str] = field(repr=False, default_factory=dict)
    """Where keys come from that the file does not say."""

    def where(self, key: Key = ()) -> str:
        """Name the file and the line (from 1) of a key, or of its nearest parent with a line."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.elsewhere:
                return self.elsewhere[key[:end]]
            if key[:end] in self.lines:
                return f"{self.path}, line {self.lines[key[:end]]}"
        return str(self.path)

    def parse(self, model: type[M]) -> M:
        """Check the values against a settings class and make one.

        Raises:
            RssegError: Names the key, its line, and the nearest known key.
        """
        from pydantic import ValidationError  # `--help` lists presets and must stay quick

        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise explain(error, model, self) from error


def read(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Unlike YAML 1.1, `1e-4` is a number and only `true` and `false` are truth values.

    Raises:
        UnreadableError: The file is missing, is no YAML, or says a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path.name} cannot be read: {error}", where=str(path)) from error
    return read_text(text, path)


def read_text(text: str, path: Path) -> Document:
    """Read YAML text as `read` does; `path` is what errors call it."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UnreadableError(
                f"{path.name} does not hold settings",
                where=str(path),
                fix="lines of the form `key: value`",
            )
        lines = dict(_lines(node, (), path))
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise UnreadableError(
            f"{path.name} is no YAML: {problem}", where=f"{path}{line}"
        ) from error
    finally:
        loader.dispose()
    return Document(path, values, lines)


class _Loader(yaml.SafeLoader):
    """The safe loader with numbers and truth values of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _lines(node: yaml.Node, key: Key, path: Path) -> Iterator[tuple[Key, int]]:
    """Walk a node: the path of every key and item, with its line from 1."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.value in seen:
                raise UnreadableError(f"{name.value} is said twice", where=f"{path}, line {line}")
            seen.add(name.value)
            yield (*key, name.value), line
            yield from _lines(value, (*key, name.value), path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*key, index), value.start_mark.line + 1
            yield from _lines(value, (*key, index), path)


def explain(
    error: ValidationError, model: type[BaseModel], document: Document, *, section: Key = ()
) -> RssegError:
    """Turn pydantic's complaint into one sentence with a place and a way out.

    An unknown key comes first: a misspelt one is also reported as missing. `section` is where
    in the document the values of `model` stand.
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    key: Key = (*section, *problem["loc"])
    name, fix = ".".join(str(part) for part in key), ""
    if problem["type"] == "extra_forbidden":
        what = f"{name} is not a known setting"
        fix = _nearest(
            str(key[-1]), fields(model, problem["loc"][:-1]), prefix=name.rpartition(".")[0]
        )
    elif problem["type"] == "missing":
        what = f"{name} is missing"
    elif problem["type"] == "value_error":
        what = f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    else:
        what = f"{name}: {problem['msg']}, not {problem['input']!r}"
    return RssegError(f"{document.path.name}: {what}", where=document.where(key), fix=fix)


def _nearest(name: str, choices: Collection[str], *, prefix: str) -> str:
    dotted = f"{prefix}." if prefix else ""
    near = get_close_matches(name, choices, n=1, cutoff=0.4)
    rest = ", ".join(sorted(set(choices) - set(near)))
    if not near:
        return f"one of: {rest}"
    return f"{dotted}{near[0]}" + (f" (also: {rest})" if rest else "")


def fields(model: type[BaseModel], key: Key) -> set[str]:
    """Collect the settings that may stand below `key` in a document of `model`."""
    models = [model]
    for part in key:
        inner = [one.model_fields.get(str(part)) for one in models]
        below = [found for info in inner if info for found in _models(info.annotation)]
        models = below or models
    return {name for one in models for name in one.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
