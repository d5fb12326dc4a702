"""Settings of a run, from a preset or a file and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from rsseg_cli import presets
from rsseg_cli.contract import Backbone, Head, Method
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.errors import RssegError, unknown
from rsseg_cli.find import backbone_names, find, names
from rsseg_cli.presets import Document
from rsseg_cli.settings import Strict
from rsseg_cli.training.adaptation import Adaptation
from rsseg_cli.training.loop import Training
from rsseg_cli.training.optimizer import Optimization

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class Component(Generic[C]):
    """Name and settings of a method or a head."""

    name: str
    config: C

    def to_json(self) -> dict[str, Any]:
        """Return the section of the YAML file."""
        return {"name": self.name} | self.config.model_dump(mode="json")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; `parse` is the inverse of `to_json`."""

    title: str
    backbone: Backbone.Config
    method: Component[Method.Config]
    head: Component[Head.Config]
    data: Sources.Config
    augment: Augment.Config
    optimizer: Optimization
    training: Training
    adapt: Adaptation = field(default_factory=Adaptation)

    def to_json(self) -> dict[str, Any]:
        """Return the values of the YAML file."""
        values: dict[str, Any] = {"title": self.title}
        for name in SECTIONS:
            section = getattr(self, name)
            named = isinstance(section, Component)
            values[name] = section.to_json() if named else section.model_dump(mode="json")
        return values

    def text(self) -> str:
        """Return the settings as YAML text."""
        return presets.to_yaml(self.to_json())


SECTIONS = ("backbone", "method", "head", "data", "augment", "optimizer", "training", "adapt")


def family(name: str) -> str:
    """Return the module of a backbone: `dinov3` for `dinov3_sat_large` and `dinov3_base`."""
    modules = (module for module in names("backbones") if name.startswith(f"{module}_"))
    return next(modules, name.partition("_")[0])


def parse(document: Document) -> RunConfig:
    """Check a document and build the settings.

    Raises:
        RssegError: A key or name is unknown or missing, or a value is out of range.
    """
    _check_sections(document)
    (backbone, where), (method, method_where), (head, head_where) = (
        _name(document, section) for section in ("backbone", "method", "head")
    )
    module = family(backbone)
    if module not in names("backbones"):
        raise unknown("backbone", backbone, backbone_names(), where=where)
    backbone_type = find("backbones", module, Backbone)
    method_type = find("methods", method, Method, where=method_where)
    head_type = find("heads", head, Head, where=head_where)
    return RunConfig(
        title=str(document.values.get("title", "")),
        backbone=_section(document, "backbone", backbone_type.Config),
        method=Component(method, _section(document, "method", method_type.Config, drop="name")),
        head=Component(head, _section(document, "head", head_type.Config, drop="name")),
        data=_section(document, "data", Sources.Config),
        augment=_section(document, "augment", Augment.Config),
        optimizer=_section(document, "optimizer", Optimization),
        training=_section(document, "training", Training),
        adapt=_section(document, "adapt", Adaptation),
    )


def _check_sections(document: Document) -> None:
    """Raise an error for sections that are unknown or are not mappings."""
    for key, values in document.values.items():
        if key not in ("title", *SECTIONS):
            raise unknown("setting", str(key), SECTIONS, where=document.where((key,)))
        if key != "title" and not isinstance(values, dict):
            raise RssegError(
                f"{document.path.name}: {key} is not a section",
                where=document.where((key,)),
                fix=f"a line `{key}:` and below it, indented, lines `setting: value`",
            )


def _name(document: Document, section: str) -> tuple[str, str]:
    """Return the name in a section, and its position in the file."""
    values = document.values.get(section, {})
    if "name" not in values:
        raise RssegError(
            f"{document.path.name}: {section}.name is missing",
            where=document.where((section,)),
            fix=f"a section `{section}:` with a line `name: ...`",
        )
    return str(values["name"]), document.where((section, "name"))


def _section(document: Document, name: str, model: type[C], *, drop: str = "") -> C:
    """Check one section and build its settings."""
    values = document.values.get(name, {})
    try:
        return model.model_validate({key: value for key, value in values.items() if key != drop})
    except ValidationError as error:
        raise presets.explain(error, model, document, section=(name,)) from error


def resolve(
    *,
    method: str | None,
    file: Path | None,
    sources: Sequence[str] = (),
    backbone: str | None = None,
    head: str | None = None,
    weights: Path | None = None,
    pretrained: bool = True,
    changes: Sequence[str] = (),
) -> RunConfig:
    """Resolve the settings of a preset or a file with the options of the command line.

    Args:
        method: Name of a method preset; exclusive with `file`.
        file: A `config.yaml`.
        sources: Datasets, in place of those in the file.
        backbone: Another backbone, with its default settings.
        head: Another head, with its default settings.
        weights: Weights file of the backbone.
        pretrained: False initialises the backbone at random.
        changes: `section.key=value`, the value in YAML.
    """
    if (method is None) == (file is None):
        raise RssegError(
            "exactly one of --method and --config is required",
            fix="--method " + " | ".join(presets.names("methods")),
        )
    path = presets.find("methods", method) if method is not None else file
    assert path is not None
    document = presets.read(path)
    _check_sections(document)
    values = document.values
    if backbone is not None:
        values["backbone"] = {"name": backbone}
    if head is not None:
        values["head"] = {"name": head}
    section = values.setdefault("backbone", {})
    if weights is not None and not pretrained:
        raise RssegError("--weights and --no-pretrained are exclusive", fix="one of the two")
    if weights is not None:
        section |= {"weights": str(weights.resolve()), "pretrained": True}
    if not pretrained:
        section |= {"pretrained": False, "weights": None}
    return _changed(document, sources, changes)


def revise(
    config: RunConfig, path: Path, *, sources: Sequence[str] = (), changes: Sequence[str] = ()
) -> RunConfig:
    """Return the settings of the model file `path` with other datasets and `changes`."""
    return _changed(Document(path, config.to_json()), sources, changes)


def changed_keys(changes: Sequence[str]) -> set[str]:
    """Return the keys of changes `section.key=value`."""
    return {change.partition("=")[0].strip() for change in changes}


def _changed(document: Document, sources: Sequence[str], changes: Sequence[str]) -> RunConfig:
    if sources:
        document.values.setdefault("data", {})["src"] = list(sources)
    for change in sorted(changes, key=lambda text: ".name=" not in text):
        _change(document, change)
    return parse(document)


def _change(document: Document, change: str) -> None:
    """Apply one `section.key=value`; a new method or head gets its default settings."""
    key, sign, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not sign or not dot or section not in SECTIONS:
        raise RssegError(
            f"--set {change} is not of the form section.key=value",
            where="--set",
            fix="e.g. --set method.rank=8; sections: " + ", ".join(SECTIONS),
        )
    value = presets.read_text(f"value: {text}", Path("--set")).values["value"]
    values = document.values.setdefault(section, {})
    if name == "name" and section in ("method", "head") and values.get("name") != value:
        values.clear()
    values[name] = value
    document.options[section, name] = f"--set {change}"
