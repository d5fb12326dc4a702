"""Preset files, and reading and writing of YAML with line numbers in errors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter

from rsseg_cli.errors import RssegError, UnreadableError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

PresetKind = Literal["methods", "datasets", "experiments", "maps"]
KINDS: tuple[PresetKind, ...] = get_args(PresetKind)
Key: TypeAlias = tuple[str | int, ...]
M = TypeVar("M", bound="BaseModel")


@cache
def folder() -> Path:
    """Return the folder of presets, inside the wheel or beside the package in a checkout."""
    package = Path(__file__).parent
    for candidate in (package / "_presets", package.parent / "presets"):
        if candidate.is_dir():
            return candidate
    raise RssegError(
        "the presets are missing from this installation",
        where=str(package),
        fix="install rsseg-cli again",
    )


def names(kind: PresetKind) -> tuple[str, ...]:
    """Return the names of the presets of a kind: paths below its folder without suffix."""
    root = folder() / kind
    return tuple(
        sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    )


def find(kind: PresetKind, name: str, *, where: str = "") -> Path:
    """Return the file of a preset.

    Raises:
        RssegError: There is no such preset.
    """
    if name not in names(kind):
        raise unknown(f"{kind.removesuffix('s')} preset", name, names(kind), where=where)
    return folder() / kind / f"{name}.yaml"


def title(kind: PresetKind, name: str) -> str:
    """Read the title of a preset."""
    return str(read(find(kind, name)).values.get("title", ""))


@dataclass(frozen=True)
class Document:
    """The contents of a YAML file."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int] = field(repr=False, default_factory=dict)
    """Line of each key and list item, from 1."""
    options: dict[Key, str] = field(repr=False, default_factory=dict)
    """Option that set a key, for keys that are not from the file."""

    def where(self, key: Key = ()) -> str:
        """Return the option, or the file and line, of a key or of its nearest parent."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.options:
                return self.options[key[:end]]
            if key[:end] in self.lines:
                return f"{self.path}, line {self.lines[key[:end]]}"
        return str(self.path)

    def parse(self, model: type[M]) -> M:
        """Build a settings object from the values.

        Raises:
            RssegError: A key is unknown or missing, or a value is invalid.
        """
        from pydantic import ValidationError  # a slow import, and `--help` lists presets

        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise explain(error, model, self) from error


def read(path: Path) -> Document:
    """Read a YAML 1.2 file whose top level is a mapping.

    Raises:
        UnreadableError: The file is missing, is not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path.name} cannot be read: {error}", where=str(path)) from error
    return read_text(text, path)


def read_text(text: str, path: Path) -> Document:
    """Read YAML text as `read` does; `path` is for errors."""
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        if not isinstance(node, MappingNode):
            raise UnreadableError(
                f"{path.name} has no settings",
                where=str(path),
                fix="lines of the form `key: value`",
            )
        values = yaml.constructor.construct_document(node)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        if isinstance(error, DuplicateKeyError):
            what = problem.partition(" with value")[0]
        else:
            what = f"not valid YAML: {problem}"
        raise UnreadableError(f"{path.name}: {what}", where=f"{path}{line}") from error
    return Document(path, values, dict(_lines(node)))


def _lines(node: Node, key: Key = ()) -> Iterator[tuple[Key, int]]:
    """Yield the path of every key and list item below a node, with its line from 1."""
    items: list[tuple[str | int, Node, Node]] = []
    if isinstance(node, MappingNode):
        items = [(k.value, k, value) for k, value in node.value if isinstance(k, ScalarNode)]
    elif isinstance(node, SequenceNode):
        items = [(index, value, value) for index, value in enumerate(node.value)]
    for name, start, value in items:
        yield (*key, name), start.start_mark.line + 1
        yield from _lines(value, (*key, name))


def to_yaml(values: object, *, flow: bool = False) -> str:
    """Return plain values as YAML 1.2, keys in their order; `flow` writes all on one line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = flow
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 10**6 if flow else 80
    stream = StringIO()
    yaml.dump(values, stream)
    return stream.getvalue().removesuffix("...\n")


class _Representer(SafeRepresenter):
    """Writes `1.0e-05`, not `1e-05`, which readers of YAML 1.1 take for text."""

    def represent_float(self, data: float) -> ScalarNode:
        node: ScalarNode = super().represent_float(data)
        if "." not in node.value and "e" in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(float, _Representer.represent_float)


def explain(
    error: ValidationError, model: type[BaseModel], document: Document, *, section: Key = ()
) -> RssegError:
    """Build an `RssegError` with file, line and a suggestion from a validation error of pydantic.

    Args:
        error: The error; of several problems, an unknown key is reported first.
        model: The settings class.
        document: The file.
        section: Key of the values of `model` in the document.
    """
    # A misspelt key is reported twice, as unknown and as missing.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key: Key = (*section, *problem["loc"])
    name, fix = ".".join(str(part) for part in key), ""
    if problem["type"] == "extra_forbidden":
        what = f"{name} is not a known setting"
        choices = _keys(model, problem["loc"][:-1])
        fix = _nearest(str(key[-1]), choices, prefix=name.rpartition(".")[0])
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


def _keys(model: type[BaseModel], key: Key) -> set[str]:
    """Return the keys that are allowed below `key` in a document of `model`."""
    models = [model]
    for name in key:
        infos = [candidate.model_fields.get(str(name)) for candidate in models]
        inner = [inside for info in infos if info for inside in _models(info.annotation)]
        models = inner or models
    return {name for candidate in models for name in candidate.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in a type annotation."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
